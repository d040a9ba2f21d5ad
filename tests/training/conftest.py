"""Data and finished stages that the tests of training share."""

import json

import pytest

from aligngpt.training import pretrain, sft
from aligngpt.training.command_line import StageParser


OVERRIDES = ["--max_steps", "3", "--per_device_train_batch_size", "4", "--logging_steps", "1"]


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def run_recipe():
    """A function that runs a recipe as the script that it is for does, with more arguments; returns the trainer."""

    def run(name, *arguments):
        module = pretrain if name.startswith("pretrain") else sft
        parser = StageParser(name.partition("_")[0])
        return module.main(*parser.parse(["--config", name, *map(str, arguments)]))

    return run


@pytest.fixture(scope="session")
def run_pretrain(run_recipe, data, vision_folder, text_folder):
    """A function that runs stage 1 with the tiny recipe and more arguments; returns the trainer."""

    def run(folder, *arguments, parts=True):
        arguments = [*OVERRIDES, "--output_dir", folder, *arguments]
        if parts:
            arguments += ["--vision", vision_folder, "--text", text_folder]
        if not {"--data", "--train_file"} & set(map(str, arguments)):
            arguments += ["--data", data / "pairs.jsonl"]
        return run_recipe("pretrain_tiny_cpu", *arguments, "--image_folder", data)

    return run


@pytest.fixture(scope="session")
def run_sft(run_recipe, data):
    """A function that runs stage 2 on a checkpoint with the tiny recipe and more arguments; returns the trainer."""

    def run(base, folder, *arguments):
        arguments = [*OVERRIDES, "--output_dir", folder, *arguments]
        if not {"--data", "--train_file"} & set(map(str, arguments)):
            arguments += ["--data", data / "chats.jsonl"]
        return run_recipe("sft_tiny_cpu", *arguments, "--model", base, "--image_folder", data)

    return run


@pytest.fixture(scope="session")
def stage_1(run_pretrain, tmp_path_factory):
    """The output folder of a stage-1 run."""
    folder = tmp_path_factory.mktemp("stage1")
    run_pretrain(folder)
    return folder


@pytest.fixture(scope="session")
def stage_2(run_sft, stage_1, tmp_path_factory):
    """The output folder of a stage-2 run that started from stage 1."""
    folder = tmp_path_factory.mktemp("stage2")
    run_sft(stage_1, folder)
    return folder
