"""The package as it is installed: one import name, the files of the Hub copies, the version."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import aligngpt


ROOT = Path(__file__).parent.parent
FOLDERS = {"modeling_aligngpt", "processing", "training", "evaluation"}
# The files that are copied to the Hub, and what they may import beside their own folder
HUB_COPIES = {
    "modeling_aligngpt/configuration_aligngpt.py": {"huggingface_hub", "transformers"},
    "modeling_aligngpt/modeling_aligngpt.py": {"torch", "transformers"},
    "processing/image_conversion_aligngpt.py": {"PIL", "numpy"},
    "processing/image_loading_aligngpt.py": {"huggingface_hub"},
    "processing/processing_aligngpt.py": {"numpy", "transformers"},
}


def imported_modules(path):
    """(level, module) of each import of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module


@pytest.mark.parametrize("path", sorted(HUB_COPIES))
def test_a_file_that_is_copied_to_the_hub_imports_only_libraries_and_siblings(path):
    for level, module in imported_modules(ROOT / path):
        if level:
            assert level == 1 and (ROOT / path).parent.joinpath(f"{module}.py").is_file(), module
        else:
            assert module.split(".")[0] in HUB_COPIES[path] | sys.stdlib_module_names, module


def test_no_file_imports_a_folder_by_its_name():
    files = [path for path in ROOT.rglob("*.py") if ".venv" not in path.parts and "build" not in path.parts]
    assert len(files) > 20
    for path in files:
        for level, module in imported_modules(path):
            assert level or module.split(".")[0] not in FOLDERS, f"{path} imports {module}"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel, built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        ROOT,
    ]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_one_name_with_templates_and_recipes(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"aligngpt", f"aligngpt-{aligngpt.__version__}.dist-info"}
    for expected in (
        "aligngpt/py.typed",
        "aligngpt/modeling_aligngpt.py",
        "aligngpt/processing/processing_aligngpt.py",
        "aligngpt/processing/chat_templates/vicuna_v1.jinja",
        "aligngpt/training/recipes/pretrain_7b.yaml",
        "aligngpt/training/accelerate/zero3_8gpu.yaml",
        "aligngpt/training/model_card_template.md",
    ):
        assert expected in names
    sources = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert {Path(name).name for name in names if name.endswith(".py")} == sources


@pytest.mark.slow
def test_the_installed_wheel_works_outside_the_checkout(wheel, run_python, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, 'site')\n"
        "import aligngpt, aligngpt.processing, aligngpt.training.pretrain, aligngpt.training.sft\n"
        "from aligngpt.training.arguments import find_recipe\n"
        "from transformers import AutoConfig\n"
        "print(aligngpt.__file__, find_recipe(['--config', 'sft_7b'])[1])\n"
        "print(len(aligngpt.processing.load_chat_template('llama3')))\n"
        "print(AutoConfig.for_model('aligngpt').num_alignment_levels)"
    )
    file, recipe, length, levels = run_python(code, tmp_path).split()
    assert file.startswith(str(tmp_path)) and recipe.startswith(str(tmp_path))
    assert int(length) > 100 and levels == "8"
