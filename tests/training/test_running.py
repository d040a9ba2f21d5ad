"""Long runs: killed, stopped, continued, ended by losses that are none; what is logged; how losses are averaged."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from aligngpt.training.arguments import StageConfig
from aligngpt.training.checkpoints import find_checkpoint


COMMAND = """
import sys, time
from transformers import TrainerCallback
from aligngpt.training import {module}
from aligngpt.training.command_line import StageParser
from aligngpt.training.trainer import AlignGPTTrainer

class Slow(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        print("step", state.global_step, flush=True)
        time.sleep({pause})

original = AlignGPTTrainer.__init__
def init(self, *args, **kwargs):
    original(self, *args, **kwargs)
    self.add_callback(Slow())
AlignGPTTrainer.__init__ = init
{module}.main(*StageParser("{module}").parse(sys.argv[1:]))
"""


def start(module, folder, arguments, pause=0.0):
    """A training script in a process of its own, which says when a step is done and then waits a little."""
    code = COMMAND.format(module=module, pause=pause)
    return subprocess.Popen(
        [sys.executable, "-c", code, "--config", {"sft": "sft_tiny_cpu", "pretrain": "pretrain_tiny_cpu"}[module]]
        + ["--output_dir", str(folder), "--per_device_train_batch_size", "2", "--logging_steps", "1"]
        + ["--max_steps", "6", "--save_strategy", "steps", "--save_steps", "2", "--resume_from_checkpoint", "latest"]
        + [str(argument) for argument in arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(process, text):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return
    pytest.fail(f"{text!r} never came:\n" + "".join(lines))


def read_losses(folder):
    """The losses by step, of the last checkpoint; a resumed run's history begins with that of the run before."""
    history = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    return {log["step"]: log["loss"] for log in history if "loss" in log}


@pytest.mark.parametrize(
    "kind", ["stage 2", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("stage 1", "LoRA"))]
)
def test_a_run_that_was_killed_goes_on_to_the_losses_of_one_that_was_not(
    kind, data, stage_1, vision_folder, text_folder, tmp_path
):
    module = "pretrain" if kind == "stage 1" else "sft"
    arguments = [
        "--image_folder",
        data,
        "--train_file",
        data / ("pairs.jsonl" if module == "pretrain" else "chats.jsonl"),
    ]
    if module == "pretrain":
        arguments += ["--vision_model_name_or_path", vision_folder, "--text_model_name_or_path", text_folder]
    else:
        arguments += ["--model_name_or_path", stage_1]
    if kind == "LoRA":
        arguments += ["--use_peft", "true", "--lora_r", "4"]
    whole = start(module, tmp_path / "whole", arguments)
    killed = start(module, tmp_path / "killed", arguments, pause=1.0)
    wait_for(killed, "step 4")  # it pauses before it saves this step
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (tmp_path / "killed" / "checkpoint-4").mkdir()  # as if it had been killed while saving
    assert (tmp_path / "killed" / "checkpoint-2").is_dir()
    again = start(module, tmp_path / "killed", arguments)
    output, _ = again.communicate()
    assert again.returncode == 0, output
    assert "step 3" in output and "step 2\n" not in output, "it goes on after the checkpoint"
    output, _ = whole.communicate()
    assert whole.returncode == 0, output
    expected = read_losses(tmp_path / "whole")
    assert len(expected) == 6 and read_losses(tmp_path / "killed") == expected
    name = "adapter_model.safetensors" if kind == "LoRA" else "model.safetensors"
    weights = [load_file(tmp_path / folder / name) for folder in ("whole", "killed")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    if kind == "stage 1":
        table = load_file(tmp_path / "whole" / "checkpoint-2" / "model.safetensors")
        assert any("alignment_embeddings" in key for key in table), "checkpoints hold the alignment embeddings too"


@pytest.mark.parametrize(
    "name", ["SIGTERM", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGINT", "SIGUSR1"))]
)
def test_a_signal_saves_a_checkpoint_and_exits(name, data, stage_1, tmp_path):
    arguments = ["--image_folder", data, "--train_file", data / "chats.jsonl", "--model_name_or_path", stage_1]
    process = start("sft", tmp_path, [*arguments, "--save_steps", "100"], pause=0.5)
    wait_for(process, "step 1")
    process.send_signal(getattr(signal, name))
    output, _ = process.communicate()
    assert process.returncode == 128 + getattr(signal, name), output
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    assert (checkpoint / "optimizer.pt").is_file() and json.loads((checkpoint / "trainer_state.json").read_text())
    assert not (tmp_path / "model.safetensors").exists(), "a stopped run is not a finished one"


@pytest.mark.slow
def test_a_streamed_run_goes_on_in_its_second_pass(data, stage_1, tmp_path):
    arguments = ["--image_folder", data, "--train_file", data / "chats.jsonl", "--model_name_or_path", stage_1]
    arguments += ["--streaming", "true", "--shuffle_buffer_size", "5", "--per_device_train_batch_size", "4"]
    outputs = []
    for _ in range(2):
        process = start("sft", tmp_path, arguments)
        outputs.append(process.communicate()[0])
        assert process.returncode == 0, outputs[-1]
        losses = read_losses(tmp_path)
        shutil.rmtree(tmp_path / "checkpoint-6")
        if len(outputs) == 1:
            expected = losses
    assert "step 5" in outputs[1] and "step 4\n" not in outputs[1], "12 rows are three steps: it is the second pass"
    assert losses == expected


def test_the_latest_checkpoint_is_the_last_complete_one(tmp_path):
    args = StageConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, resume_from_checkpoint="latest")
    assert find_checkpoint(args) is None
    for step, state in ((9, "{}"), (10, "{}"), (11, '{"cut'), (12, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert find_checkpoint(args) == str(tmp_path / "checkpoint-10")


def poison(part):
    """A callback that makes a part of the model give or receive numbers that are none, from the second step on."""

    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 1:
                projector = model.model.multi_modal_projector.linear_2
                if part == "loss":
                    projector.bias.data[0] = float("nan")
                else:
                    projector.bias.register_hook(lambda gradient: gradient * float("inf"))

    return Poison()


@pytest.mark.parametrize("max_grad_norm", ["1", "0"])
@pytest.mark.parametrize(
    ("part", "message"), [("loss", "The loss of step 2 is nan"), ("gradient", "gradients of step 2")]
)
def test_numbers_that_are_none_end_the_run_with_the_rows_of_the_batch(
    part, message, max_grad_norm, run_pretrain, tmp_path, monkeypatch
):
    from aligngpt.training.trainer import AlignGPTTrainer

    original = AlignGPTTrainer.__init__

    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.add_callback(poison(part))

    monkeypatch.setattr(AlignGPTTrainer, "__init__", init)
    with pytest.raises(FloatingPointError, match=message) as error:
        run_pretrain(tmp_path, "--max_grad_norm", max_grad_norm)
    rows = json.loads(str(error.value).partition("rows ")[2].partition("]")[0].replace("'", '"') + "]")
    assert len(rows) == 4 and set(rows) < {str(index) for index in range(12)}


def test_the_logs_hold_the_loss_of_each_level_in_stage_1(run_pretrain, tmp_path):
    trainer = run_pretrain(tmp_path, "--max_steps", "1", "--per_device_train_batch_size", "12", "--learning_rate", "0")
    (logs,) = [log for log in trainer.state.log_history if "loss" in log]
    # Independently: the model's own loss of each level's rows, by transformers' loss function
    rows = [trainer.train_dataset[index] for index in range(12)]
    model = trainer.model.eval()
    for level in range(8):
        batch = trainer.data_collator([row for row in rows if row["alignment_level"] == level])
        inputs = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
        with torch.no_grad():
            assert logs[f"loss_level_{level}"] == pytest.approx(model(**inputs).loss.item(), rel=1e-4)
    assert logs["tokens_per_second"] > 0 and logs["memory_gib"] > 0


def test_the_logs_hold_the_gate_s_mean_weights_and_entropy_in_stage_2(run_sft, stage_1, tmp_path):
    trainer = run_sft(
        stage_1, tmp_path, "--max_steps", "1", "--per_device_train_batch_size", "12", "--learning_rate", "0"
    )
    (logs,) = [log for log in trainer.state.log_history if "loss" in log]
    rows = [row for row in trainer.train_dataset if row["images"]]
    batch = trainer.data_collator(rows)
    inputs = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor) and name != "labels"}
    with torch.no_grad():
        weights = trainer.model.get_alignment_weights(**inputs)
    assert [logs[f"gate_weight_{index}"] for index in range(7)] == pytest.approx(weights.mean(0).tolist(), abs=1e-4)
    entropy = torch.distributions.Categorical(weights).entropy().mean().item()
    assert logs["gate_entropy"] == pytest.approx(entropy, abs=1e-4)


def test_the_loss_is_averaged_over_tokens_however_the_batch_is_accumulated(run_sft, stage_1, data, tmp_path):
    records = [json.loads(line) for line in (data / "chats.jsonl").read_text().splitlines()][:8]
    for index, record in enumerate(records):  # answers of very different lengths
        record["messages"][1]["content"] = "cat " * (1 + 5 * index)
    path = tmp_path / "uneven.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    losses, weights = [], []
    for batch_size, steps in ((1, 8), (4, 2), (8, 1)):
        trainer = run_sft(
            *(stage_1, tmp_path / f"{batch_size}", "--train_file", path, "--gradient_accumulation_steps", steps),
            *("--per_device_train_batch_size", batch_size, "--max_steps", "2"),
        )
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
        weights.append(trainer.model.lm_head.weight.detach())
    for other in (1, 2):
        assert losses[0] == pytest.approx(losses[other], rel=1e-4)
        torch.testing.assert_close(weights[0], weights[other], atol=1e-4, rtol=1e-3)
