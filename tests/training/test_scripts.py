"""Both training scripts, run for a few steps with the tiny recipes."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed
from trl import ModelConfig, TrlParser

from aligngpt.composing import compose
from aligngpt.training import pretrain, sft
from aligngpt.training.arguments import AblationArguments, ComposeArguments, DataArguments, StageConfig, find_recipe


OVERRIDES = ["--max_steps", "3", "--per_device_train_batch_size", "4", "--logging_steps", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_image):
    """A folder with images, captions with levels, and conversations, one of three without an image."""
    folder = tmp_path_factory.mktemp("data")
    pairs, chats = [], []
    for index in range(12):
        make_image(index).save(folder / f"{index}.png")
        pairs.append({"id": index, "image": f"{index}.png", "caption": f"cat {index}", "alignment_level": index % 8})
        messages = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": f"cat {index}."}]
        chats.append({"id": str(index), "image": f"{index}.png" if index % 3 else None, "messages": messages})
    for name, records in (("pairs", pairs), ("chats", chats)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture(scope="module")
def stage_1(data, vision_folder, text_folder, tmp_path_factory):
    """The output folder of a stage-1 run."""
    folder = tmp_path_factory.mktemp("stage1")
    arguments = ["--config", "pretrain_tiny_cpu", *OVERRIDES, "--output_dir", str(folder)]
    arguments += ["--vision_model_name_or_path", str(vision_folder), "--text_model_name_or_path", str(text_folder)]
    arguments += ["--train_file", str(data / "pairs.jsonl"), "--image_folder", str(data)]
    parser = TrlParser((DataArguments, ComposeArguments, StageConfig, ModelConfig))
    pretrain.main(*parser.parse_args_and_config(args=find_recipe(arguments)))
    return folder


@pytest.fixture(scope="module")
def stage_2(data, stage_1, tmp_path_factory):
    """The output folder of a stage-2 run that started from stage 1."""
    folder = tmp_path_factory.mktemp("stage2")
    arguments = ["--config", "sft_tiny_cpu", *OVERRIDES, "--output_dir", str(folder)]
    arguments += ["--model_name_or_path", str(stage_1)]
    arguments += ["--train_file", str(data / "chats.jsonl"), "--image_folder", str(data)]
    sft.main(
        *TrlParser((DataArguments, AblationArguments, StageConfig, ModelConfig)).parse_args_and_config(
            args=find_recipe(arguments)
        )
    )
    return folder


def load_weights(folder):
    return AutoModelForImageTextToText.from_pretrained(folder).state_dict()


def test_stage_1_changes_exactly_projector_and_embeddings(stage_1, vision_folder, text_folder):
    set_seed(42)  # the recipe's: the new modules start from it
    before = compose(str(vision_folder), str(text_folder))[0].state_dict()
    after = load_weights(stage_1)
    trained = ("model.multi_modal_projector.", "model.alignment_embeddings.")
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {name for name in after if name.startswith(trained)}


def test_stage_2_changes_exactly_projector_language_model_and_gate(stage_1, stage_2):
    before, after = load_weights(stage_1), load_weights(stage_2)
    trained = ("model.multi_modal_projector.", "model.language_model.", "lm_head.", "model.alignment_gate.")
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {name for name in after if name.startswith(trained)}


def test_both_outputs_load_through_the_auto_classes_and_answer(stage_1, stage_2, make_image):
    for folder in (stage_1, stage_2):
        model = AutoModelForImageTextToText.from_pretrained(folder)
        processor = AutoProcessor.from_pretrained(folder)
        inputs = processor(images=make_image(0), text="<image> cat", return_tensors="pt")
        assert model.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]
        assert processor.chat_template.keys() == {"default", "plain"}
    assert processor.image_processor.do_pad, "stage 2 pads to a square"


def test_pretraining_needs_a_model_or_its_two_parts(stage_1, data, tmp_path):
    parser = TrlParser((DataArguments, ComposeArguments, StageConfig, ModelConfig))
    arguments = ["--config", "pretrain_tiny_cpu", "--output_dir", str(tmp_path), "--train_file", "x.jsonl"]
    with pytest.raises(ValueError, match="Name either a composed model"):
        pretrain.main(*parser.parse_args_and_config(args=find_recipe(arguments)))


def test_a_recipe_that_does_not_exist_lists_those_that_do():
    with pytest.raises(FileNotFoundError, match="no file llama.*pretrain_7b"):
        find_recipe(["--config", "llama"])


def test_the_scripts_run_as_modules():
    for name in ("pretrain", "sft"):
        command = [sys.executable, "-m", f"aligngpt.training.{name}", "--help"]
        assert "--train_file" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
