"""`aligngpt pretrain` and `aligngpt sft`: their help, what is told before anything is loaded, and how they launch."""

import json
import sys
import warnings
from importlib.resources import files

import pytest
import yaml
from accelerate.commands import launch

from aligngpt.__main__ import main
from aligngpt.processing.command_output import Mistakes
from aligngpt.training import command_line
from aligngpt.training.arguments import find_recipe
from aligngpt.training.command_line import StageParser, run_stage


RECIPES = sorted(path.stem for path in files("aligngpt.training").joinpath("recipes").iterdir())


@pytest.fixture
def told(monkeypatch, capsys):
    """A function that runs a command that is wrong; returns what it told."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["aligngpt", *(str(argument) for argument in arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        return capsys.readouterr().err

    return run


def show_help(stage, option, capsys):
    with pytest.raises(SystemExit):
        StageParser(stage).parse([option])
    return capsys.readouterr().out


def test_help_shows_our_arguments_and_the_recipes_and_help_all_the_rest(capsys):
    short, everything = show_help("sft", "--help", capsys), show_help("sft", "--help-all", capsys)
    assert "--alignment_mode" in short and "--accelerate_config" in short and "--model MODEL" in short
    assert "  sft_7b_lora " in short and "pretrain_7b " not in short.partition("recipes (")[2]
    assert "--adam_beta1" not in short and "aligngpt sft --help-all" in short
    assert "--adam_beta1" in everything and len(everything) > 2 * len(short)


def test_everything_wrong_with_a_run_is_told_before_anything_is_loaded(told, tmp_path):
    (tmp_path / "file").touch()
    options = (
        "--data",
        "no.json",
        "--image_folder",
        "none",
        "--output_dir",
        tmp_path / "file",
        "--model",
        tmp_path / "m",
    )
    lines = told("pretrain", "--config=pretrain_7b", *options, "--load_in_4bit", "true").splitlines()
    expected = ["tf32 is left out"]
    expected += [
        "--model /",
        "--data no.json",
        "--image_folder none",
        "--output_dir",
        "Stage 1",
        "--bf16 true",
    ]
    assert all(any(text in line for line in lines) for text in expected), lines
    assert sum(line.startswith("aligngpt pretrain: ") for line in lines) == len(expected) - 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--gate_learning_rat", "1"], "no option --gate_learning_rat: did you mean --gate_learning_rate?"),
        (["--load_in_4bit", "true"], "--load_in_4bit: weights of 4 bits cannot be trained, .* add --use_peft true"),
        (["--streaming", "true"], "Streamed rows have no end: say how long to train by --max_steps"),
        (["--eval_strategy", "steps"], "--eval_strategy steps: name what to evaluate on by --eval_file"),
        (["--use_cpu", "false", "--bf16", "true"], "no GPU that computes in bf16: add --bf16 false --dtype float32"),
        (["--fp16", "true"], "--fp16 true: a CPU does not train in fp16"),
        (["--accelerate_config", "zero9"], "no accelerate configuration of that name. There are: .*zero2_8gpu"),
        (["--accelerate_config", "zero2_8gpu"], "is for 8 GPUs in a machine, and this one has 0"),
    ],
)
def test_a_mistake_is_told_with_the_remedy(arguments, expected, stage_1, data, tmp_path):
    given = ["--config", "sft_tiny_cpu", "--model", stage_1, "--data", data / "chats.jsonl", "--output_dir", tmp_path]
    with pytest.raises((Mistakes, FileNotFoundError), match=expected):
        run_stage("sft", [str(argument) for argument in (*given, *arguments)])


def test_a_recipe_is_found_by_its_name_with_an_equals_sign_too():
    assert find_recipe(["--config=sft_7b", "--x", "1"]) == find_recipe(["--config", "sft_7b", "--x", "1"])


def test_a_misspelt_key_of_a_recipe_is_told_with_the_one_that_was_meant(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("learning_rat: 1.0e-3\nalignment_mode: lokal\naccelerate_config: zero2_8gpu\n")
    with pytest.raises(Mistakes) as error:
        StageParser("sft").parse(["--config", str(recipe), "--data", "x", "--output_dir", str(tmp_path)])
    assert "unknown key learning_rat: did you mean learning_rate?" in str(error.value)
    assert "unknown key accelerate_config: it belongs on the command line" in str(error.value)
    assert "alignment_mode is 'lokal' in the recipe; it can be adaptive, average, local, global" in str(error.value)


def test_earlier_names_work_in_recipes_and_as_options(data, checkpoint, tmp_path, caplog):
    recipe = tmp_path / "mine.yaml"
    values = {"train_file": str(data / "pairs.jsonl"), "on_bad_row": "skip", "gradient_checkpointing": False}
    recipe.write_text(yaml.safe_dump(values | {"use_cpu": True, "bf16": False, "activation_checkpointing": True}))
    options = ["--config", str(recipe), "--vision_model_name_or_path", str(checkpoint), "--text", str(checkpoint)]
    options += ["--output_dir", str(tmp_path / "out"), "--gradient_checkpointing", "false"]
    data_args, compose_args, training_args, _ = StageParser("pretrain").parse(options)
    assert (data_args.data, data_args.on_error) == (str(data / "pairs.jsonl"), "skip")
    assert compose_args.vision == str(checkpoint)
    name = "activation_checkpointing"  # called otherwise before transformers 5.23
    name = name if hasattr(training_args, name) else "gradient_checkpointing"
    assert getattr(training_args, name) is False, "an option wins over a recipe that has the later name"
    assert "train_file is called data now" in caplog.text and "on_bad_row is called on_error now" in caplog.text


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_raises_no_warning_of_something_that_will_be_gone(name, stage_1, data, tmp_path):
    options = ["--config", name, "--model", str(stage_1), "--data", str(data / "chats.jsonl"), "--use_cpu", "true"]
    options += ["--output_dir", str(tmp_path), "--bf16", "false", "--fp16", "false", "--dtype", "float32"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.simplefilter("error", DeprecationWarning)
        StageParser(name.partition("_")[0]).parse(options)


def test_a_recipe_for_gpus_runs_on_another_machine_by_the_flags_of_the_readme(
    data, vision_folder, text_folder, tmp_path
):
    options = ["--config", "pretrain_7b", "--data", data / "pairs.jsonl", "--image_folder", data, "--max_steps", "1"]
    options += ["--vision", vision_folder, "--text", text_folder, "--output_dir", tmp_path / "out"]
    options += ["--bf16", "false", "--dtype", "float32", "--dataloader_num_workers", "0", "--save_strategy", "no"]
    options += ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1"]
    run_stage("pretrain", [str(option) for option in options])
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_an_evaluation_file_without_a_strategy_is_evaluated_at_the_end(run_sft, stage_1, data, tmp_path, caplog):
    with caplog.at_level("INFO", "aligngpt"):
        trainer = run_sft(stage_1, tmp_path, "--eval_file", data / "chats.jsonl", "--max_steps", "1")
    (logs,) = [log for log in trainer.state.log_history if "eval_loss" in log]
    assert logs["step"] == 1
    assert caplog.messages[-2] == f"Evaluation at the end: loss {logs['eval_loss']:.4f}."
    assert caplog.messages[-1] == f"Written to {tmp_path}."


@pytest.mark.parametrize(
    ("record", "options", "expected"),
    [
        ({"stage": "pretrain", "adapter": False}, [], "a run of `aligngpt pretrain`"),
        ({"stage": "sft", "adapter": True}, [], "an adapter, and this run writes a whole model"),
        (None, [], "a model that no training of this package wrote"),
        ({"stage": "sft", "adapter": False}, [], None),
        ({"stage": "pretrain", "adapter": False}, ["--check", "true"], None),
    ],
)
def test_a_run_is_not_written_over_one_of_another_kind(record, options, expected, stage_1, data, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    if record is not None:
        (tmp_path / "checkpoint-2").mkdir()
        (tmp_path / "checkpoint-2" / "training_stages.json").write_text(json.dumps([record]))
    given = ["--config", "sft_tiny_cpu", "--model", stage_1, "--data", data / "chats.jsonl", "--output_dir", tmp_path]
    given = [str(argument) for argument in (*given, *options)]
    if expected is None:
        StageParser("sft").parse(given)
    else:
        with pytest.raises(Mistakes, match=expected):
            StageParser("sft").parse(given)


def test_a_packaged_accelerate_file_launches_the_script_with_the_same_arguments(stage_1, data, tmp_path, monkeypatch):
    launched = []
    monkeypatch.setattr(command_line, "launch_command", launched.append)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    own = ["--config", "sft_7b", "--model", str(stage_1), "--data", str(data / "chats.jsonl"), "--max_steps", "2"]
    own += ["--output_dir", str(tmp_path / "out")]
    run_stage("sft", [*own[:4], "--accelerate_config=zero3_8gpu", "--num_processes", "2", *own[4:]])
    (args,) = launched
    assert args.config_file.endswith("zero3_8gpu.yaml") and args.num_processes == 2
    assert args.module and args.training_script == "aligngpt.training.sft"
    assert args.training_script_args == own
    with pytest.raises(Mistakes, match="no option --num_proceses"):
        run_stage("sft", [*own, "--accelerate_config", "zero3_8gpu", "--num_proceses", "2"])


def test_a_launch_ends_with_the_exit_code_of_what_it_launched(stage_1, data, tmp_path):
    config = tmp_path / "cpu.yaml"
    settings = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO", "num_processes": 1}
    settings |= {"num_machines": 1, "machine_rank": 0, "mixed_precision": "no", "use_cpu": True}
    config.write_text(yaml.safe_dump(settings))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"id": "bad"}\n')
    own = ["--config", "sft_tiny_cpu", "--model", str(stage_1), "--data", str(broken)]
    with pytest.raises(SystemExit) as stopped:
        run_stage("sft", [*own, "--output_dir", str(tmp_path / "out"), "--accelerate_config", str(config)])
    assert stopped.value.code == 2 and launch.launch_command is command_line.launch_command
