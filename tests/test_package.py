"""The package as it is installed: one import name, the files of the Hub copies, the version."""

import ast
import json
import subprocess
import sys
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import aligngpt


ROOT = Path(__file__).parent.parent
FOLDERS = {"modeling_aligngpt", "processing", "serving", "training", "evaluation"}
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
    folders = [
        path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".") and path.name != "build"
    ]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    assert len(files) > 20
    for path in files:
        for level, module in imported_modules(path):
            assert level or module.split(".")[0] not in FOLDERS, f"{path} imports {module}"


# What may import what: a folder imports from itself and from those before it. The files that go to the Hub are on the
# lowest floors, those of the images beside the corpus that opens its pictures by them
FLOORS = (
    ("aligngpt.processing.image_conversion_aligngpt", "aligngpt.processing.image_loading_aligngpt"),
    ("aligngpt.processing.atomic_output", "aligngpt.processing.chat_templates"),
    ("aligngpt.processing.argument_checks", "aligngpt.processing.command_output", "aligngpt.processing.command_line"),
    ("aligngpt.processing.corpus",),
    ("aligngpt.processing.scoring",),
    ("aligngpt.processing.levels",),
    ("aligngpt.processing.tokenization", "aligngpt.processing.processing_aligngpt", "aligngpt.processing"),
    ("aligngpt.configuration_aligngpt",),
    ("aligngpt.modeling_aligngpt",),
    ("aligngpt.auto_classes", "aligngpt"),
    ("aligngpt.weights",),
    ("aligngpt.training",),
    ("aligngpt.serving",),
    ("aligngpt.__main__",),
)


def floor_of(module):
    """The floor with the longest name that the module's begins with."""
    names = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    return names[max((name for name in names if f"{module}.".startswith(f"{name}.")), key=len)]


def package_imports():
    """Module by module of the package, the modules of the package that it imports, anywhere in its code."""
    folders = {"modeling_aligngpt": "aligngpt"} | {n: f"aligngpt.{n}" for n in ("processing", "serving", "training")}
    files = {}
    for folder, package in folders.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = (package, *path.relative_to(ROOT / folder).with_suffix("").parts)
            files[".".join(part for part in parts if part != "__init__")] = path
    graph = {}
    for module, path in files.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        imported = set()
        tree = ast.parse(path.read_text())
        for checked in (node for node in ast.walk(tree) if isinstance(node, ast.If)):
            if ast.unparse(checked.test) == "TYPE_CHECKING":  # for type checkers alone
                checked.body = []
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
                base = ".".join(filter(None, (base, node.module)))
                imported |= {
                    f"{base}.{alias.name}" if f"{base}.{alias.name}" in files else base for alias in node.names
                }
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
        graph[module] = {name for name in imported if name in files} - {module}
    return graph


def test_imports_run_one_way_without_a_circle():
    graph = package_imports()
    assert len(graph) > 40
    for module, imported in graph.items():
        for name in imported:
            assert floor_of(name) <= floor_of(module), f"{module} reaches up to {name}"
    list(TopologicalSorter(graph).static_order())  # raises CycleError


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


WITHOUT_EXTRAS = """
import sys
for name in ("ijson", "matplotlib"):
    sys.modules[name] = None
sys.stderr = sys.stdout
from aligngpt.__main__ import main
main()
"""


def test_json_is_read_and_levels_are_cut_without_the_extras_and_what_is_missing_is_told(tmp_path):
    rows = [{"id": str(i), "image": f"{i}.jpg", "caption": "a", "alignment_score": i / 10} for i in range(4)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    options = ["levels", "rows.json", "--num_levels", "2", "--to", "llava-json", "--output_dir", "levels"]
    command = [sys.executable, "-c", WITHOUT_EXTRAS, *options]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "rows.json is read into memory as a whole; row by row with `pip install 'aligngpt[data]'`" in result.stdout
    assert "levels.png and samples.png need matplotlib: pip install 'aligngpt[data]'." in result.stdout
    found = json.loads((tmp_path / "levels" / "pairs.json").read_text())
    assert [row["alignment_level"] for row in found] == [0, 0, 1, 1]
