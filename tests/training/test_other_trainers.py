"""TRL's own trainers and script on an AlignGPT checkpoint: SFT, DPO, GRPO; and what the gate reads in each."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoProcessor, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from aligngpt import AlignGPTForConditionalGeneration
from aligngpt.training.collator import AlignGPTDataCollator

from ..tolerance import assert_close  # noqa: TID252


OPTIONS = {
    "use_cpu": True,
    "bf16": False,
    "max_steps": 2,
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "save_strategy": "no",
    "report_to": "none",
}


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


@pytest.fixture
def trained(stage_1):
    """A stage-1 model, before and to be trained."""
    return [AlignGPTForConditionalGeneration.from_pretrained(stage_1) for _ in range(2)]


@pytest.fixture
def stage_1_processor(stage_1):
    return AutoProcessor.from_pretrained(stage_1)


def changed_modules(before, after):
    names = {name for name, weight in before.state_dict().items() if not torch.equal(weight, after.state_dict()[name])}
    modules = ("vision_tower", "multi_modal_projector", "alignment_embeddings", "alignment_gate", "language_model")
    return {module for module in modules if any(f".{module}." in name for name in names)}


def get_gate_weights(model, batch):
    names = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
    with torch.no_grad():
        return model.get_alignment_weights(**{name: batch[name] for name in names if name in batch})


def chats(images, answers):
    return Dataset.from_dict(
        {"images": [[image] for image in images], "messages": [user("Blue?") + assistant(a) for a in answers]}
    )


def collate(kind, model, processor, images, tmp_path, answers):
    """A batch as a trainer of TRL's makes it, of prompts that are the same and answers that are given."""
    if kind == "our collator":
        rows = chats(images, answers)
        return AlignGPTDataCollator(processor)([rows[index] for index in range(len(rows))])
    config = {**OPTIONS, "output_dir": str(tmp_path), "gradient_checkpointing": False}
    if kind == "SFT":
        trainer = SFTTrainer(
            model,
            SFTConfig(**config, max_length=None),
            train_dataset=chats(images, answers),
            processing_class=processor,
        )
    elif kind == "SFT, prompt and completion":
        columns = {
            "images": [[i] for i in images],
            "prompt": [user("Blue?")] * 2,
            "completion": [assistant(a) for a in answers],
        }
        trainer = SFTTrainer(
            model,
            SFTConfig(**config, max_length=None),
            train_dataset=Dataset.from_dict(columns),
            processing_class=processor,
        )
    else:
        columns = {"images": [[i] for i in images], "prompt": [user("Blue?")] * 2}
        columns |= {"chosen": [assistant(a) for a in answers], "rejected": [assistant("no") for _ in answers]}
        trainer = DPOTrainer(
            model,
            args=DPOConfig(**config, max_length=None),
            train_dataset=Dataset.from_dict(columns),
            processing_class=processor,
        )
    return trainer.data_collator([trainer.train_dataset[index] for index in range(2)])


KINDS = ["our collator", "SFT", "SFT, prompt and completion", "DPO"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sees", ["prompt", "all"])
def test_the_gate_sees_the_answer_if_and_only_if_it_shall(
    kind, sees, trained, stage_1_processor, make_image, tmp_path
):
    model, processor, images = trained[0].eval(), stage_1_processor, [make_image(0), make_image(1)]
    model.config.alignment_gate_text = sees
    weights = []
    for answers in (["red cat", "12"], ["no dog here", "a mat"]):
        batch = collate(kind, model, processor, images, tmp_path, answers)
        weights.append(get_gate_weights(model, batch)[:2])  # the chosen ones come first in DPO
    assert torch.allclose(*weights, atol=1e-5) == (sees == "prompt")
    if sees == "prompt":  # and it is what the gate will see at inference, in a prompt without an answer
        prompts = [
            [{"role": "user", "content": [{"type": "image", "image": i}, {"type": "text", "text": "Blue?"}]}]
            for i in images
        ]
        inputs = processor.apply_chat_template(
            prompts, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert_close(get_gate_weights(model, inputs), weights[0], largest=1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_trainer_sees_the_tokens_of_a_whole_chat(kind, trained, stage_1_processor, make_image, tmp_path):
    processor, images = stage_1_processor, [make_image(0), make_image(1)]
    batch = collate(kind, trained[0], processor, images, tmp_path, ["red cat", "a mat"])
    row = batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist()
    whole = AlignGPTDataCollator(processor)([chats(images, ["red cat", "a mat"])[0]])["input_ids"][0].tolist()
    assert processor.tokenizer.convert_ids_to_tokens(row) == processor.tokenizer.convert_ids_to_tokens(whole)


def test_dpo_runs_on_prompts_with_images(trained, stage_1_processor, make_image, tmp_path):
    columns = {"images": [[make_image(i)] for i in range(4)], "prompt": [user("Blue?")] * 4}
    columns |= {"chosen": [assistant("red cat")] * 4, "rejected": [assistant("12 cats")] * 4}
    before, model = trained
    trainer = DPOTrainer(
        model,
        args=DPOConfig(**OPTIONS, output_dir=str(tmp_path), max_length=None, beta=1.0),
        train_dataset=Dataset.from_dict(columns),
        processing_class=stage_1_processor,
    )
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[0] == pytest.approx(0.6931, abs=1e-4) and losses[1] < losses[0]
    assert {"alignment_gate", "multi_modal_projector", "language_model"} <= changed_modules(before, model)


def test_grpo_runs_on_prompts_with_images(trained, stage_1_processor, make_image, tmp_path):
    columns = {"images": [[make_image(i)] for i in range(4)], "prompt": [user("Blue?")] * 4}
    options = {**OPTIONS, "per_device_train_batch_size": 4}
    before, model = trained
    trainer = GRPOTrainer(
        model,
        args=GRPOConfig(**options, output_dir=str(tmp_path), num_generations=2, max_completion_length=6),
        reward_funcs=lambda completions, **columns: [float(len(turns[0]["content"])) for turns in completions],
        train_dataset=Dataset.from_dict(columns),
        processing_class=stage_1_processor,
    )
    seen = []

    def keep(module, args, kwargs, outputs):
        if module.training and torch.is_grad_enabled():
            seen.append((kwargs["input_ids"], outputs.alignment_weights.detach()))

    model.model.register_forward_hook(keep, with_kwargs=True)
    trainer.train()
    assert trainer.state.global_step == 2
    assert {"alignment_gate", "language_model"} <= changed_modules(before, model)
    # Two prompts, which differ in their image, and two completions of each: the gate sees no completion
    input_ids, weights = seen[0]
    assert len({tuple(row) for row in input_ids.tolist()}) > 2, "the completions differ"
    assert len({tuple(row) for row in weights.mul(1e4).round().tolist()}) == 2


def test_sft_adds_neftune_s_noise_to_the_embeddings_and_trains(trained, stage_1_processor, make_image, tmp_path):
    model, noisy = trained[1], []
    columns = {"images": [[make_image(0)], [], [make_image(1)], []]}
    columns["messages"] = [user("Blue?") + assistant(answer) for answer in ("yes", "no", "cat", "mat")]
    trainer = SFTTrainer(
        model,
        SFTConfig(**OPTIONS, output_dir=str(tmp_path), max_length=None, neftune_noise_alpha=5),
        train_dataset=Dataset.from_dict(columns),
        processing_class=stage_1_processor,
    )

    def compare(embedding, args, output):  # runs after the hook that adds the noise
        noisy.append((output - embedding.weight[args[0]]).abs().max().item() > 0)

    class KeepHooks(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            model.get_input_embeddings().register_forward_hook(compare)

    trainer.add_callback(KeepHooks())
    trainer.train()
    assert trainer.state.global_step == 2 and noisy and all(noisy)


def test_grpo_runs_on_rows_without_an_image_beside_rows_with_one(trained, stage_1_processor, make_image, tmp_path):
    """It cuts the pixels of a batch by row: a row of text gets pixels of no image."""
    columns = {"images": [[make_image(0)], [], [make_image(1)], []], "prompt": [user("Blue?")] * 4}
    trainer = GRPOTrainer(
        trained[1],
        args=GRPOConfig(
            **{**OPTIONS, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
            output_dir=str(tmp_path),
            num_generations=2,
            max_completion_length=4,
        ),
        reward_funcs=lambda completions, **columns: [float(len(turns[0]["content"])) for turns in completions],
        train_dataset=Dataset.from_dict(columns),
        processing_class=stage_1_processor,
    )
    shapes = set()
    trained[1].model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.add(tuple(getattr(kwargs.get("pixel_values"), "shape", ()))),
        with_kwargs=True,
    )
    trainer.train()
    assert trainer.state.global_step == 2 and (0, 3, 16, 16) in shapes


def test_trl_s_own_sft_script_trains_all_of_a_checkpoint_that_brings_its_code(stage_1, make_image, tmp_path):
    rows = [{"images": [make_image(i)], "messages": user("Blue?") + assistant(f"cat {i}")} for i in range(4)]
    (tmp_path / "data").mkdir()
    Dataset.from_list(rows).to_parquet(tmp_path / "data" / "train.parquet")
    command = ["sft", "--model_name_or_path", str(stage_1), "--trust_remote_code", "true"]
    command += ["--dataset_name", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out"), "--max_steps", "3"]
    command += ["--use_cpu", "true", "--bf16", "false", "--max_length", "2048", "--assistant_only_loss", "true"]
    command += ["--learning_rate", "1e-3", "--save_strategy", "no", "--per_device_train_batch_size", "2"]
    result = subprocess.run(
        [Path(sys.executable).with_name("trl"), *command], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stdout + result.stderr
    before, after = (load_file(folder / "model.safetensors") for folder in (stage_1, tmp_path / "out"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # What the README says that it does not do: nothing is frozen
    for module in ("vision_tower.", "alignment_embeddings.", "alignment_gate.", "multi_modal_projector.", "layers."):
        assert any(module in name for name in changed), module
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "aligngpt"
