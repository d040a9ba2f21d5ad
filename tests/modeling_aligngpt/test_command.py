"""The command `aligngpt`: its table of sub-commands, their help, and how mistakes are told."""

import io
import logging
import os
import subprocess
import sys
import sysconfig
from importlib.metadata import distributions

import pytest

import aligngpt
from aligngpt.__main__ import COMMANDS, main
from aligngpt.processing.command_output import Mistakes, StderrHandler, told_in_a_line
from aligngpt.processing.levels.arguments import LevelArguments
from aligngpt.weights.export_command import ExportArguments


@pytest.fixture
def aligngpt_command(monkeypatch, capsys):
    """A function that runs the command in this process; returns the exit code and what was printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["aligngpt", *(str(argument) for argument in arguments)])
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_the_installed_command_is_the_module():
    # An egg-info that a build left in the checkout counts as a distribution too
    scripts = {script.value for found in distributions(name="aligngpt") for script in found.entry_points}
    assert scripts == {"aligngpt.__main__:main"}


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_command_all_are_listed(arguments, aligngpt_command):
    code, printed, _ = aligngpt_command(*arguments)
    assert code == 0 and all(f"  {name} " in printed for name in COMMANDS)


def test_an_unknown_command_is_told_with_the_one_that_was_meant(aligngpt_command):
    code, _, told = aligngpt_command("scores")
    assert code == 2 and told.count("\n") == 1
    assert "there is no command 'scores': did you mean score?" in told


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_what_it_does_and_its_arguments(command, aligngpt_command):
    code, printed, _ = aligngpt_command(command, "--help")
    assert code == 0 and f"    aligngpt {command} " in printed, "the docstring's examples"
    assert ("--output_" in printed) == (command not in ("serve", "page")), "what is written, and where"
    assert "-dir" not in printed.replace("--output_dir", ""), "one spelling of an option"


SCRIPT = os.path.join(sysconfig.get_path("scripts"), "aligngpt")  # that pip installed

LIGHT = """
import runpy, sys
sys.argv = {arguments}
try:
    runpy.run_module("aligngpt", run_name="__main__", alter_sys=True)
except SystemExit:
    pass
loaded = {{name for name in ("torch", "transformers", "datasets", "pyarrow", "trl") if name in sys.modules}}
print("loaded:", sorted(loaded))
"""


@pytest.mark.parametrize("argument", ["--help", "--version", "nonsense"])
def test_the_table_of_commands_and_the_version_need_no_library(argument, run_python, tmp_path):
    printed = run_python(LIGHT.format(arguments=[SCRIPT, argument]), tmp_path)
    assert printed.endswith("loaded: []\n")
    assert argument != "--version" or printed.startswith(f"aligngpt {aligngpt.__version__}\n")


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("pretrain", "sft")])
def test_the_help_of_a_command_needs_transformers_parser_and_nothing_else(command, run_python, tmp_path):
    printed = run_python(LIGHT.format(arguments=[SCRIPT, command, "--help"]), tmp_path)
    assert printed.endswith("loaded: ['transformers']\n")


def test_the_main_input_is_a_positional_that_help_shows(aligngpt_command, tmp_path):
    _, printed, _ = aligngpt_command("levels", "--help")
    assert printed.startswith("usage: aligngpt levels DATA --output_dir OUTPUT_DIR [options]\n")
    told = [
        aligngpt_command("levels", data, "--output_dir", tmp_path / "x")[2] for data in ("no.json", "--data=no.json")
    ]
    assert told[0] == told[1] and "--data no.json: there is no such file" in told[0]
    assert (
        "are the same thing: give one"
        in aligngpt_command("levels", "a.json", "--data", "b.json", "--output_dir", "x")[2]
    )


@pytest.mark.parametrize("option", ["--output-dir", "--output_dir", "--output-dir=", "--out"])
def test_options_may_be_written_with_hyphens_or_underscores_and_by_earlier_names(option, aligngpt_command, tmp_path):
    given = [f"{option}{tmp_path}"] if option.endswith("=") else [option, tmp_path]
    (tmp_path / "something").touch()
    code, _, told = aligngpt_command("levels", "--scores", "no.json", *given)
    assert code == 2 and f"--output_dir {tmp_path}: it is there already, and not empty" in told
    assert "scores is called data now" in told
    assert ("out is called output_dir now" in told) == (option == "--out")


def test_export_llava_still_works_and_says_what_it_is_called_now(aligngpt_command, tmp_path):
    code, _, told = aligngpt_command("export-llava", tmp_path / "no", "--out", tmp_path / "x")
    assert code == 2 and "aligngpt export-llava is called aligngpt export --to llava now" in told
    assert f"aligngpt export: --model {tmp_path / 'no'}: there is no such folder." in told


def test_all_mistakes_are_told_at_once_a_line_each(aligngpt_command, tmp_path):
    options = ("--apply", tmp_path / "no", "--image_folder", tmp_path / "none", "--num_levels", 1)
    code, _, told = aligngpt_command("levels", tmp_path / "scores.json", "--output_dir", "/dev/null/x", *options)
    lines = told.splitlines()
    assert code == 2 and len(lines) == 5 and all(line.startswith("aligngpt levels: --") for line in lines)
    assert "Traceback" not in told


def test_what_is_missing_is_told_at_once(aligngpt_command):
    assert aligngpt_command("merge")[2].startswith("aligngpt merge: ADAPTER, --output_dir must be given")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--num_level", "there is no option --num_level: did you mean --num_levels?"),
        ("--rule=equal", "invalid choice: 'equal'"),
        ("--num_levels=many", "invalid int value: 'many'"),
        ("stray", "'stray' belongs to no option"),
    ],
)
def test_a_wrong_argument_is_told_in_a_line(argument, expected, aligngpt_command):
    code, _, told = aligngpt_command("levels", "scores", "--output_dir", "levels", argument)
    assert code == 2 and expected in told and told.count("\n") == 1


def test_a_name_that_is_neither_folder_nor_known_to_the_hub_is_told_so(aligngpt_command, tmp_path):
    _, _, told = aligngpt_command("compose", "--vision", "my/clip", "--text", "./no", "--output_dir", tmp_path / "x")
    assert "--vision my/clip: there is no such folder, and the Hub cannot be reached" in told
    assert "--text ./no: there is no such folder.\n" in told


def test_what_is_no_adapter_is_not_merged(aligngpt_command, checkpoint, tmp_path):
    _, _, told = aligngpt_command("merge", checkpoint, "--output_dir", tmp_path / "x")
    assert f"--adapter {checkpoint}: the folder holds no adapter" in told


def test_an_output_is_not_an_input(aligngpt_command, checkpoint):
    _, _, told = aligngpt_command("export", checkpoint, "--output_dir", checkpoint)
    assert f"--output_dir {checkpoint}: this is --model as well" in told


def test_where_it_will_write_is_told_first(aligngpt_command, tmp_path):
    (tmp_path / "empty.json").write_text("[]")
    _, _, told = aligngpt_command("levels", tmp_path / "empty.json", "--output_dir", tmp_path / "x")
    assert told.startswith(f"Output: {tmp_path / 'x'}\n")


def test_a_bug_shows_its_traceback_and_a_mistake_only_with_debug(capsys):
    for error in (TypeError(), KeyError(), AssertionError(), IndexError(), ModuleNotFoundError()):
        with pytest.raises(type(error)), told_in_a_line("aligngpt x"):
            raise error
    with pytest.raises(ValueError), told_in_a_line("aligngpt x", debug=True):
        raise ValueError("wrong")
    assert capsys.readouterr().err == ""
    with pytest.raises(SystemExit) as stopped, told_in_a_line("aligngpt x"):
        raise ValueError("wrong\n  in two lines")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "aligngpt x: wrong in two lines (--debug shows the traceback)\n"
    with pytest.raises(SystemExit) as stopped, told_in_a_line("aligngpt x"):
        raise KeyboardInterrupt
    assert stopped.value.code == 130 and capsys.readouterr().err == "\naligngpt x: stopped.\n"


def test_debug_shows_the_traceback_of_a_mistake(aligngpt_command):
    with pytest.raises(Mistakes):
        aligngpt_command("levels", "--debug")


def test_log_lines_go_to_what_stderr_is_when_they_are_written(monkeypatch):
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", first)
    handler = StderrHandler()
    first.close()
    monkeypatch.setattr(sys, "stderr", second)
    handler.emit(logging.makeLogRecord({"msg": "told"}))
    assert second.getvalue() == "told\n"


def test_the_package_shows_its_own_names_only():
    assert dir(aligngpt) == sorted(aligngpt.__all__)
    wanted = "compose convert export_llava load_adapter AlignmentScorer cut_into_levels AlignGPTTrainer"
    assert {*wanted.split(), "AlignGPTDataCollator", "load_training_data"} <= set(dir(aligngpt))
    assert all(getattr(aligngpt, name) is not None for name in aligngpt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        aligngpt.nothing  # noqa: B018


REGISTERED = """
import sys
sys.argv = [{script!r}]
import aligngpt
assert "transformers" not in sys.modules
aligngpt.{name}
from transformers import AutoConfig
print(AutoConfig.for_model("aligngpt").model_type)
"""


@pytest.mark.parametrize("name", ["AlignGPTConfig", "AlignmentScorer"])
def test_in_the_command_the_first_name_that_is_used_registers_the_classes(name, run_python, tmp_path):
    assert run_python(REGISTERED.format(name=name, script=SCRIPT), tmp_path) == "aligngpt\n"


def test_processes_that_the_command_starts_know_the_classes(tmp_path):
    (tmp_path / "aligngpt.py").write_text(
        "import multiprocessing\n"
        "def look():\n"
        "    import sys\n"
        "    sys.path.pop(0)\n"
        "    import aligngpt\n"
        "    from transformers import AutoConfig\n"
        "    print(AutoConfig.for_model('aligngpt').model_type)\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('spawn').Process(target=look)\n"
        "    process.start(); process.join()\n"
    )
    result = subprocess.run([sys.executable, tmp_path / "aligngpt.py"], capture_output=True, text=True, cwd=tmp_path)
    assert result.stdout == "aligngpt\n", result.stderr


def test_one_thing_has_one_name_in_all_commands():
    for arguments in (LevelArguments, ExportArguments):
        assert "output_dir" in arguments.__dataclass_fields__
        assert not {"out", "source", "scores"} & arguments.__dataclass_fields__.keys()


@pytest.mark.parametrize("name", ["aligngpt", "/somewhere/aligngpt", "aligngpt.py"])
def test_another_program_of_the_commands_name_has_the_classes_registered(name, run_python, tmp_path):
    code = f"import sys; sys.argv = [{name!r}]; import aligngpt; from transformers import AutoConfig\n"
    assert run_python(code + "print(AutoConfig.for_model('aligngpt').model_type)", tmp_path) == "aligngpt\n"


@pytest.mark.parametrize("options", [["-m"], ["-um"], ["-Im"], ["-u", "-m"]])
def test_the_module_is_the_command_with_whatever_options_of_python(options, tmp_path):
    command = [sys.executable, *options, "aligngpt", "--version"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, f"aligngpt {aligngpt.__version__}\n"), result.stderr


def test_what_the_command_composes_loads_without_the_package(vision_folder, text_folder, run_python, tmp_path):
    parts = ["--vision", vision_folder, "--text", text_folder]
    command = [SCRIPT, "compose", *parts, "--output_dir", tmp_path / "composed"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    code = (
        "import sys; sys.modules['aligngpt'] = None\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        "model = AutoModelForImageTextToText.from_pretrained('composed', trust_remote_code=True)\n"
        "print(type(model).__name__, type(AutoProcessor.from_pretrained('composed', trust_remote_code=True)).__name__)"
    )
    printed = run_python(code, tmp_path, HF_HOME=str(tmp_path / "cache"))
    assert printed.split() == ["AlignGPTForConditionalGeneration", "AlignGPTProcessor"]
