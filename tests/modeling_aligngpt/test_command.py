"""The command `aligngpt` and its table of sub-commands."""

import sys
from importlib.metadata import distributions

import pytest

from aligngpt.__main__ import COMMANDS, main


def test_the_installed_command_is_the_module():
    # An egg-info that a build left in the checkout counts as a distribution too
    scripts = {script.value for found in distributions(name="aligngpt") for script in found.entry_points}
    assert scripts == {"aligngpt.__main__:main"}


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_command_all_are_listed(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["aligngpt", *arguments])
    main()
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in COMMANDS)


def test_an_unknown_command_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["aligngpt", "scores"])
    with pytest.raises(SystemExit, match="no command 'scores'"):
        main()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_its_arguments(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["aligngpt", command, "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0 and "--out" in capsys.readouterr().out


def test_arguments_may_be_written_with_hyphens_or_underscores(monkeypatch, tmp_path):
    for option in ("--output-dir", "--output_dir"):
        monkeypatch.setattr(sys, "argv", ["aligngpt", "levels", "--scores", str(tmp_path / "no.json"), option, "x"])
        with pytest.raises(FileNotFoundError, match="no.json"):
            main()
