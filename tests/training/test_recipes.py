"""The recipes: held against the paper's by numbers written out here, and each of them run for two steps."""

import json
import re
from importlib.resources import files

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from transformers import AutoModelForImageTextToText


RECIPES = {path.stem: path for path in files("aligngpt.training").joinpath("recipes").iterdir()}
PAPER = {name for name in RECIPES if "tiny" not in name}

# Number of GPUs that the recipe is for; the paper: eight
NUM_GPUS = dict.fromkeys(PAPER, 8) | {"sft_7b_qlora_24gb": 1, "sft_7b_qlora_t4": 1}
LORA = {"sft_7b_lora", "sft_7b_qlora_24gb", "sft_7b_qlora_t4"}
# LLaVA-1.5's rate for LoRA; the paper has none
LEARNING_RATES = {name: 1e-3 if name.startswith("pretrain") else 2e-5 for name in PAPER} | dict.fromkeys(LORA, 2e-4)
STAGE_1 = {"model.multi_modal_projector", "model.alignment_embeddings"}
STAGE_2 = {"model.multi_modal_projector", "model.language_model", "lm_head", "model.alignment_gate"}
TRAINED = {name: STAGE_1 if name.startswith("pretrain") else STAGE_2 for name in RECIPES}
TRAINED |= dict.fromkeys(("sft_7b_average", "sft_7b_global"), STAGE_2 - {"model.alignment_gate"})
TRAINED |= dict.fromkeys(LORA, STAGE_2 - {"lm_head"})
NUM_LEVELS = {"pretrain_7b_n4": 4, "pretrain_7b_n6": 6, "pretrain_7b_n10": 10}
ABLATIONS = {
    "sft_7b_local": {"alignment_mode": "local"},
    "sft_7b_global": {"alignment_mode": "global"},
    "sft_7b_average": {"alignment_mode": "average"},
    "sft_7b_random_table": {"random_alignment_embeddings": True},
}


def read(name):
    return yaml.safe_load(RECIPES[name].read_text())


def test_there_is_a_recipe_for_every_row_of_the_method():
    wanted = {"pretrain_7b", "sft_7b", "pretrain_13b", "sft_13b", "pretrain_llama3_8b", "sft_llama3_8b"}
    wanted |= LORA | NUM_LEVELS.keys() | ABLATIONS.keys() | {"pretrain_tiny_cpu", "sft_tiny_cpu"}
    assert RECIPES.keys() == wanted


@pytest.mark.parametrize("name", sorted(PAPER))
def test_the_numbers_are_the_paper_s(name):
    recipe = read(name)
    global_batch = NUM_GPUS[name] * recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"]
    assert global_batch == (256 if name.startswith("pretrain") else 128)
    comment = re.search(r"Global batch (\d+) = (\d+) GPUs? x (\d+) per device x (\d+) acc", RECIPES[name].read_text())
    assert [int(number) for number in comment.groups()] == [
        global_batch,
        NUM_GPUS[name],
        recipe["per_device_train_batch_size"],
        recipe["gradient_accumulation_steps"],
    ]
    assert recipe["learning_rate"] == LEARNING_RATES[name]
    assert (recipe["lr_scheduler_type"], recipe["warmup_steps"], recipe["weight_decay"]) == ("cosine", 0.03, 0.0)
    assert recipe["num_train_epochs"] == 1 and recipe["optim"].startswith("adamw")
    assert recipe["max_length"] == (1024 if name.endswith("t4") else 2048)
    assert recipe["activation_checkpointing"]
    # A T4 has neither bf16 nor tf32
    half = {"bf16": not name.endswith("t4"), "fp16": name.endswith("t4"), "tf32": not name.endswith("t4")}
    assert {key: recipe.get(key, False) for key in half} == half
    assert recipe.get("group_by_modality_length", False) == name.startswith("sft")
    assert recipe.get("use_peft", False) == (name in LORA) and recipe.get("load_in_4bit", False) == ("qlora" in name)
    fields = ("alignment_mode", "random_alignment_embeddings")
    assert {key: recipe[key] for key in fields if key in recipe} == ABLATIONS.get(name, {})


@pytest.mark.parametrize("name", sorted(PAPER))
def test_stage_1_takes_the_paper_s_parts(name):
    recipe = read(name)
    if name.startswith("pretrain"):
        assert recipe["vision"] == "openai/clip-vit-large-patch14-336"
        size = {"pretrain_13b": "vicuna-13b-v1.5", "pretrain_llama3_8b": "Llama-3-8B-Instruct"}
        assert recipe["text"].endswith(size.get(name, "vicuna-7b-v1.5"))
        assert recipe["num_alignment_levels"] == NUM_LEVELS.get(name, 8)


DEVICE = ["--use_cpu", "true", "--bf16", "false", "--fp16", "false", "--dtype", "float32", "--max_steps", "2"]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_runs_with_tiny_parts_and_trains_what_it_should(
    name, data, vision_folder, text_folder, stage_1, run_recipe, tmp_path, monkeypatch
):
    import bitsandbytes

    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)  # see test_lora.py
    arguments = [*DEVICE, "--image_folder", data, "--output_dir", tmp_path / "out"]
    if "tf32" in read(name):
        arguments += ["--tf32", "false"]
    if name.startswith("pretrain"):
        num_levels = NUM_LEVELS.get(name, 8)
        pairs = [json.loads(line) for line in (data / "pairs.jsonl").read_text().splitlines()]
        pairs = [pair | {"alignment_level": pair["id"] % num_levels} for pair in pairs]
        (tmp_path / "pairs.json").write_text(json.dumps(pairs))
        arguments += ["--data", tmp_path / "pairs.json", "--text", text_folder]
        arguments += ["--vision", vision_folder]
    else:
        arguments += ["--data", data / "chats.jsonl", "--model_name_or_path", stage_1]
    trainer = run_recipe(name, *arguments)
    assert trainer.state.global_step == 2
    args = trainer.args
    if name in PAPER:
        assert args.per_device_train_batch_size * args.gradient_accumulation_steps * NUM_GPUS[name] in (128, 256)
        assert args.lr_scheduler_type == "cosine" and args.learning_rate == LEARNING_RATES[name]
    trained = {parameter for parameter, p in trainer.model.named_parameters() if p.requires_grad}
    if name in LORA:
        trained = {parameter.removeprefix("base_model.model.") for parameter in trained}
        assert all(".lora_" in parameter for parameter in trained if "language_model" in parameter)
        assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    else:
        names = {parameter for parameter, _ in trainer.model.named_parameters()}
        assert trained == {parameter for parameter in names if parameter.startswith(tuple(TRAINED[name]))}
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
        assert model.config.num_alignment_levels == NUM_LEVELS.get(name, 8)
        assert model.config.alignment_mode == ABLATIONS.get(name, {}).get("alignment_mode", "adaptive")
    assert {module for module in STAGE_1 | STAGE_2 if any(p.startswith(module) for p in trained)} == TRAINED[name]


def test_every_accelerate_file_is_one_that_accelerate_reads():
    folder = files("aligngpt.training").joinpath("accelerate")
    kinds = {path.name: load_config_from_file(str(path)) for path in folder.iterdir()}
    processes = {name: (config.num_machines, config.num_processes) for name, config in kinds.items()}
    assert processes == {
        "one_gpu.yaml": (1, 1),
        "ddp_8gpu.yaml": (1, 8),
        "zero2_8gpu.yaml": (1, 8),
        "zero3_8gpu.yaml": (1, 8),
        "zero3_two_nodes.yaml": (2, 16),
        "fsdp2_8gpu.yaml": (1, 8),
    }
    assert kinds["zero2_8gpu.yaml"].deepspeed_config["zero_stage"] == 2
    assert kinds["fsdp2_8gpu.yaml"].fsdp_config["fsdp_version"] == 2
