"""Several processes: DDP through the scripts, and FSDP2, on CPU with gloo."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import torch


RUN = """
import sys, torch, torch.distributed as dist
from aligngpt.training import pretrain, sft
from aligngpt.training.command_line import StageParser
from aligngpt.training.collator import AlignGPTDataCollator

torch.set_num_threads(1)
module, out, arguments = sys.argv[1], sys.argv[2], sys.argv[3:]
original = AlignGPTDataCollator.torch_call
seen, ids = [], []
def torch_call(self, rows):
    seen.append([bool(row["images"]) for row in rows])
    ids.append([row["id"] for row in rows])
    return original(self, rows)
AlignGPTDataCollator.torch_call = torch_call
main = {"pretrain": pretrain, "sft": sft}[module].main
trainer = main(*StageParser(module).parse(arguments))
rank = trainer.args.process_index
parameters = {name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}
logs = [log for log in trainer.state.log_history if "loss" in log]
result = {"parameters": parameters, "logs": logs, "seen": seen, "ids": ids, "world_size": trainer.args.world_size}
torch.save(result, f"{out}/{rank}.pt")
"""


def torchrun(code, folder, arguments, processes=2, **environment):
    """Runs code in several processes that know each other; one of them alone needs no launcher."""
    script = folder / "run.py"
    script.write_text(code)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "0"]
    launcher = [*launcher, "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"] if processes > 1 else []
    result = subprocess.run(
        [sys.executable, *launcher, str(script), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture
def mixed(data, tmp_path):
    """Batches of four, by turns with and without images: one rank gets those with, the other those without."""
    records = []
    for index in range(24):
        with_image = (index // 4) % 2 == 0
        messages = [
            {"role": "user", "content": "What is it?"},
            {"role": "assistant", "content": "cat " * (index % 5 + 1)},
        ]
        record = {"id": index, "messages": messages, "alignment_level": index % 8}
        records.append(record | ({"image": f"{index % 12}.png"} if with_image else {}))
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def run_stage(module, folder, processes, data, mixed, *arguments, batch_size=4):
    folder.mkdir(exist_ok=True)
    torchrun(
        RUN,
        folder,
        [
            module,
            folder,
            "--config",
            {"sft": "sft_tiny_cpu", "pretrain": "pretrain_tiny_cpu"}[module],
            "--max_steps",
            3,
        ]
        + ["--per_device_train_batch_size", batch_size, "--logging_steps", 1, "--output_dir", folder / "out"]
        + ["--train_file", mixed, "--image_folder", data, "--train_sampling_strategy", "sequential", *arguments],
        processes,
    )
    return [torch.load(folder / f"{rank}.pt") for rank in range(processes)]


def test_two_processes_save_a_checkpoint_and_go_on_from_it(data, mixed, stage_1, tmp_path):
    arguments = ["--model_name_or_path", stage_1, "--resume_from_checkpoint", "latest", "--save_strategy", "steps"]
    arguments += ["--save_steps", 2]
    whole, _ = run_stage("sft", tmp_path / "whole", 2, data, mixed, *arguments)
    shutil.rmtree(tmp_path / "whole" / "out" / "checkpoint-3")
    again = run_stage("sft", tmp_path / "whole", 2, data, mixed, *arguments)
    assert [len(result["seen"]) for result in again] == [1, 1], "only the third step is run again"
    for result in again:
        for name, parameter in whole["parameters"].items():
            torch.testing.assert_close(parameter, result["parameters"][name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("module", [pytest.param("pretrain", marks=pytest.mark.slow), "sft"])
def test_two_processes_one_without_images_end_with_the_parameters_of_one(
    module, data, mixed, stage_1, vision_folder, text_folder, tmp_path
):
    if module == "pretrain":
        base = ["--vision_model_name_or_path", vision_folder, "--text_model_name_or_path", text_folder]
    else:
        base = ["--model_name_or_path", stage_1]
    first, second = run_stage(module, tmp_path / "two", 2, data, mixed, *base)
    assert (first["world_size"], second["world_size"]) == (2, 2)
    assert all(all(batch) for batch in first["seen"]) and not any(any(batch) for batch in second["seen"])
    (single,) = run_stage(module, tmp_path / "one", 1, data, mixed, *base, batch_size=8)
    for name, parameter in first["parameters"].items():
        assert torch.equal(parameter, second["parameters"][name]), name
        torch.testing.assert_close(parameter, single["parameters"][name], atol=1e-3, rtol=1e-3)
    for key in ("loss", "gate_entropy" if module == "sft" else "loss_level_1"):
        assert [log[key] for log in first["logs"]] == pytest.approx([log[key] for log in single["logs"]], rel=1e-3), (
            key
        )


def test_two_processes_stream_every_row_equally_often_from_files_of_unequal_size(data, mixed, stage_1, tmp_path):
    lines = mixed.read_text().splitlines(keepends=True)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.jsonl").write_text("".join(lines[:3]))
    (tmp_path / "files" / "b.jsonl").write_text("".join(lines[3:]))
    arguments = ["--model_name_or_path", stage_1, "--streaming", "true", "--shuffle_buffer_size", 1]
    arguments += ["--gradient_accumulation_steps", 2, "--train_file", f"{tmp_path}/files/*.jsonl"]
    results = run_stage("sft", tmp_path / "two", 2, data, mixed, *arguments)  # 3 x 2 x 2 batches of 4: twice all
    assert torch.equal(*(result["parameters"]["lm_head.weight"] for result in results))
    # Six batches each; the data loader reads one ahead
    counts = Counter(row for result in results for batch in result["ids"][:6] for row in batch)
    assert counts == {str(index): 2 for index in range(24)}


@pytest.mark.slow
def test_two_processes_with_grouped_rows_go_on_in_the_second_epoch(data, mixed, stage_1, tmp_path):
    arguments = ["--model_name_or_path", stage_1, "--resume_from_checkpoint", "latest", "--save_strategy", "steps"]
    arguments += ["--save_steps", 4, "--max_steps", 6, "--group_by_modality_length", "true"]
    whole = run_stage("sft", tmp_path / "whole", 2, data, mixed, *arguments)
    shutil.rmtree(tmp_path / "whole" / "out" / "checkpoint-6")
    again = run_stage("sft", tmp_path / "whole", 2, data, mixed, *arguments)
    for before, after in zip(whole, again, strict=True):
        assert len(before["ids"]) == 6 and after["ids"][-2:] == before["ids"][-2:], (
            "3 steps an epoch: it is the second"
        )
        for name, parameter in before["parameters"].items():
            torch.testing.assert_close(parameter, after["parameters"][name], atol=1e-6, rtol=1e-5)


SHARDED = """
import os, sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoProcessor
from aligngpt import AlignGPTForConditionalGeneration
from aligngpt.training.collator import AlignGPTDataCollator
from aligngpt.training.data import load_training_data
from aligngpt.training.stages import select_trainable

sharding, stage, checkpoint, train_file, images, out = sys.argv[1:]
torch.set_num_threads(1)
model = AlignGPTForConditionalGeneration.from_pretrained(checkpoint).train()
select_trainable(model, stage)
rank, world = 0, 1
if sharding != "none":
    if sharding.startswith("zero"):
        import deepspeed
        deepspeed.init_distributed(dist_backend="gloo")
    else:
        dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
if sharding == "fsdp2":
    mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
    for block in (*model.model.vision_tower.encoder.layers, *model.model.language_model.layers):
        fully_shard(block, mesh=mesh)
    for module in (model.model.multi_modal_projector, model.model.alignment_gate, model):
        fully_shard(module, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
rows = list(load_training_data(train_file))
template, levels = ("plain", 8) if stage == "pretrain" else (None, None)
collator = AlignGPTDataCollator(
    AutoProcessor.from_pretrained(checkpoint), image_folder=images, chat_template=template, num_alignment_levels=levels
)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
if sharding.startswith("zero"):
    zero = {"stage": int(sharding[-1]), "stage3_param_persistence_threshold": 0}
    config = {"train_micro_batch_size_per_gpu": 4, "gradient_clipping": 1.0, "zero_optimization": zero}
    config["zero_allow_untested_optimizer"] = True
    model, optimizer, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
losses = []
for step in range(3):
    batches = [rows[8 * step : 8 * step + 4], rows[8 * step + 4 : 8 * step + 8]]
    total, num_tokens = torch.zeros(()), sum((collator(batch)["labels"][:, 1:] != -100).sum() for batch in batches)
    for batch in batches[rank::world]:
        inputs = {name: value for name, value in collator(batch).items() if isinstance(value, torch.Tensor)}
        loss = model(**inputs, num_items_in_batch=num_tokens).loss
        if sharding.startswith("zero"):
            model.backward(loss * world)
        else:
            (loss * world).backward()
        total += loss.detach()
    if sharding != "none":
        dist.all_reduce(total)
    if sharding.startswith("zero"):
        model.step()
    else:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    losses.append(total.item())
if rank == 0:
    torch.save(losses, out)
if sharding != "none":
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(0)  # gloo's threads sometimes abort an interpreter that ends while they run, after all is done
"""


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["fsdp2", "zero2", "zero3"])
@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_sharded_over_two_processes_one_without_images_the_losses_are_those_of_one(
    sharding, stage, data, mixed, stage_1, tmp_path
):
    if sharding.startswith("zero"):
        pytest.importorskip(
            "deepspeed", reason="pip install deepspeed; DS_BUILD_OPS=0 DS_ACCELERATOR=cpu without a GPU"
        )
    for kind in ("none", sharding):
        arguments = [kind, stage, stage_1, mixed, data, tmp_path / f"{kind}.pt"]
        torchrun(SHARDED, tmp_path, arguments, 1 if kind == "none" else 2, DS_ACCELERATOR="cpu")
    single, sharded = torch.load(tmp_path / "none.pt"), torch.load(tmp_path / f"{sharding}.pt")
    assert len(set(single)) == 3, "it learns"
    assert sharded == pytest.approx(single, abs=1e-4)
