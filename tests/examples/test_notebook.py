"""The notebook for a T4, its cells run one after the other with a tiny checkpoint on CPU."""

import ast
import json
import os
import shlex
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement


NOTEBOOK = Path(__file__).parents[2] / "examples" / "finetune_t4.ipynb"


def run_shell(line, variables):
    """What Jupyter does with a line that begins with an exclamation mark; here a failure is one."""
    command = shlex.split(line[1:].format(**variables))
    command[0] = str(Path(sys.executable).with_name(command[0]))
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_notebook_s_cells_train_an_adapter_and_ask_it(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    variables, printed = {}, ""
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        tags, source = cell["metadata"].get("tags", []), "".join(cell["source"])
        if cell["cell_type"] != "code" or "install" in tags:
            continue
        lines = source.splitlines()
        if lines[0].startswith("!"):
            printed += "".join(run_shell(line, variables) for line in lines)
        else:
            exec(compile(source, str(NOTEBOOK), "exec"), variables)
        if "parameters" in tags:
            cpu = "--use_cpu true --fp16 false --dtype float32 --load_in_4bit false --gradient_accumulation_steps 4"
            variables |= {"BASE": str(checkpoint), "EXTRA": cpu, "IN_4_BITS": False}
    assert "[[ It is red.</s>]]" in printed
    assert (tmp_path / "aligngpt-7b-t4" / "adapter_model.safetensors").is_file()
    assert len(variables["weights"]) == 7 and sum(variables["weights"]) == pytest.approx(1.0, abs=1e-5)
    assert "grad_fn" not in capsys.readouterr().out


def test_what_the_cells_import_comes_with_the_package():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    (install,) = ["".join(cell["source"]) for cell in cells if "install" in cell["metadata"].get("tags", [])]
    assert install.startswith("!pip install -q {PACKAGE}")
    source = "\n".join(line for cell in cells for line in "".join(cell["source"]).splitlines() if line[:1] != "!")
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
    required = {Requirement(text).name.lower() for text in requires("aligngpt") if "extra ==" not in text}
    brought = packages_distributions()
    for name in imported - sys.stdlib_module_names - {"aligngpt"}:
        assert {distribution.lower().replace("-", "_") for distribution in brought[name]} & {
            each.replace("-", "_") for each in required
        }, name
