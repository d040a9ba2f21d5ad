"""README, manual and the folders' tables of files say what is there."""

import ast
import re
from pathlib import Path

import pytest
import transformers


ROOT = Path(__file__).parents[2]
FOLDERS = ("modeling_aligngpt", "processing", "serving", "training", "examples", "benchmarks", "docs", "tests")
PAGES = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"{f}/README.md" for f in FOLDERS))
]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
# Told by their folder, in one line
TOLD_TOGETHER = ("training/recipes/", "training/accelerate/", "examples/miniature/results/", "benchmarks/results/")
TOLD_TOGETHER += tuple(
    f"tests/{folder}/" for folder in ("modeling_aligngpt", "processing", "serving", "training", "examples")
)
TOLD_TOGETHER += ("tests/docs/", "tests/workflows/", "docs/api/")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_s_readme_has_every_file(name):
    folder = ROOT / name
    text = (folder / "README.md").read_text("utf-8")
    for path in folder.rglob("*"):
        place = str(path.relative_to(ROOT))
        if path.is_dir() or "__pycache__" in place or path.name in ("README.md", "__init__.py", "conftest.py"):
            continue
        if path.suffix in (".png",) or place.startswith(TOLD_TOGETHER):
            continue
        assert path.name in text, f"{name}/README.md does not tell {place}"
    for mentioned in re.findall(r"`([\w./]+\.(?:py|sh|md|yaml|ipynb|jinja))`", text):
        assert list(folder.rglob(Path(mentioned).name)) or (ROOT / mentioned).exists(), f"{name}: {mentioned}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name}: {target}"


def read_strings(path: Path) -> str:
    """All strings of a source file, as they are written: f-strings with their expressions, pieces joined."""
    texts = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [v.value if isinstance(v, ast.Constant) else f"{{{ast.unparse(v.value)}}}" for v in node.values]
            texts.append("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return "\n".join(texts)


def test_messages_of_the_troubleshooting_page_are_said():
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    headings = re.findall(r"^### (.*`.*)$", page, re.MULTILINE)
    messages = [message for heading in headings for message in re.findall(r"`([^`]+)`", heading)]
    assert len(messages) > 20
    sources = [path for folder in FOLDERS[:4] for path in (ROOT / folder).rglob("*.py")]
    auto = Path(transformers.__file__).parent / "models" / "auto"
    sources += [auto / "auto_factory.py", auto / "configuration_auto.py"]
    said = "\n".join(map(read_strings, sources))
    assert not [message for message in messages if message not in said]


def test_the_readme_is_a_page():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 130
