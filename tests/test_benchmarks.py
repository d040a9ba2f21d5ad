"""What the benchmarks' programs compute; what they measure, they measure themselves."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from aligngpt import AlignGPTConfig, AlignGPTForConditionalGeneration


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def training_memory():
    return runpy.run_path(str(BENCHMARKS / "training_memory.py"))


def test_the_estimate_of_full_training_is_the_formula_by_hand(training_memory):
    # Vicuna-7B in 8 shards: 18 bytes for each of 6.76e9 parameters, 2 for the tower's 0.30e9; 16 rows of 2048 tokens
    spread, trained, memory = training_memory["estimate"]("sft_7b")
    activations = 2 * 16 * 2048 * (32 * 4096 + 2 * (8 * 4096 + 4 * 11008))
    expected = (18 * 6.76e9 / 8 + 2 * 0.303e9 / 8 + activations) / 2**30 + 2 + 2
    assert spread == "ZeRO-3, 8 GPUs" and trained == pytest.approx(6760, rel=0.01)
    assert memory == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("recipe", "gib"), [("sft_7b_qlora_24gb", 24), ("sft_7b_qlora_t4", 16), ("sft_13b", 80)])
def test_a_recipe_fits_the_gpu_that_it_names(training_memory, recipe, gib):
    assert training_memory["estimate"](recipe)[2] < 0.85 * gib


@pytest.mark.parametrize("recipe", ["pretrain_7b", "sft_7b_lora"])
def test_a_measurement_runs_on_a_tiny_model_without_a_gpu(training_memory, recipe):
    cpu = ["--use_cpu", "true", "--bf16", "false", "--tf32", "false", "--dtype", "float32", "--max_length", "256"]
    cpu += [
        "--per_device_train_batch_size",
        "1",
        "--gradient_accumulation_steps",
        "1",
        "--dataloader_num_workers",
        "0",
    ]
    result = training_memory["measure"](recipe, *cpu, size="tiny")
    assert result["loss"] > 0 and result["gib"] > 0 and result["tokens_per_second"] > 0


def test_flops_are_counted_as_by_hand(training_memory):
    # LLaMA's layers: 4 D^2 of attention and 3 D I of the MLP; the head. 4 for each frozen weight, 6 for a trained one
    config = AlignGPTConfig(
        text_config=LlamaConfig(**training_memory["LANGUAGE_MODELS"]["tiny"], vocab_size=320),
        vision_config=CLIPVisionConfig(**training_memory["TINY_TOWER"]),
        image_token_index=300,
        align_token_id=301,
    )
    model = AlignGPTForConditionalGeneration(config).requires_grad_(False)
    layers, head, attention = 2 * (4 * 64**2 + 3 * 64 * 128), 320 * 64, 3 * 2 * 2 * 100 * 64
    assert training_memory["count_flops"](model, 100) == 4 * (layers + head) + attention
    model.lm_head.requires_grad_(True)
    assert training_memory["count_flops"](model, 100) == 4 * layers + 6 * head + attention


def test_the_models_that_are_compared_hold_the_same_tensors(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    make_models = runpy.run_path(str(BENCHMARKS / "beside_llava.py"))["make_models"]
    models = make_models("cpu", "cpu", torch.float32)
    theirs = dict(models["LLaVA"].named_parameters())
    ours = dict(models["AlignGPT"].named_parameters())
    assert all(ours[name].data_ptr() == tensor.data_ptr() for name, tensor in theirs.items())
    assert all("alignment" in name for name in ours.keys() - theirs.keys())


@pytest.mark.slow
def test_what_runs_on_a_gpu_runs_with_tiny_models_on_a_cpu(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable}
    command = [str(BENCHMARKS / "gpu.sh"), "--tiny", str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
    parts = [line.split(":")[0] for line in (tmp_path / "summary.txt").read_text().splitlines()]
    assert {"tests", "pretrain_7b", "sft_7b_lora", "sft_7b_qlora_24gb", "beside_llava", "scoring"} <= set(parts)
    assert json.loads((tmp_path / "sft_7b_lora.json").read_text())["tokens_per_second"] > 0
