"""What the benchmarks' programs compute; what they measure, they measure themselves."""

import runpy
from pathlib import Path

import pytest


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
