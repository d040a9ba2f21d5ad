"""`aligngpt page`: its arguments, its examples, and the page as a Space."""

import json
import sys
from importlib.metadata import metadata
from pathlib import Path

import gradio as gr
import pytest
import yaml
from packaging.specifiers import SpecifierSet

from aligngpt.processing.command_output import Mistakes
from aligngpt.serving.examples import check_examples
from aligngpt.serving.page_command import PageArguments, find_examples, find_problems, given, load_page
from aligngpt.serving.space import write_space

from ..hub_server import LoopbackHub  # noqa: TID252


def test_arguments_that_do_not_go_together_are_told(checkpoint):
    def problems(**options):
        return find_problems(PageArguments(**{"model": "you/model", **options}))

    assert problems() == []
    assert "--user and --password go together" in problems(user="me")[0]
    assert "--port 70000" in problems(port=70000)[0]
    assert "loads its model from the Hub" in problems(model=str(checkpoint), space="space")[0]
    found = problems(space="space", user="me", password="secret", level="best")
    assert found == [f"--{name} is for running the page, not for --space." for name in ("user", "password")]


def test_pictures_to_click_on_are_looked_at_first(checkpoint, files):
    assert find_examples(PageArguments(model=str(checkpoint))) == []
    assert find_examples(PageArguments(model="m", example=[str(files / "0.png")]))[0][0] == str(files / "0.png")
    with pytest.raises(ValueError, match="bad.png"):
        check_examples([str(files / "0.png"), str(files / "bad.png")])


@pytest.fixture
def space(checkpoint, files, tmp_path):
    """A Space with options."""
    arguments = PageArguments(str(checkpoint), level="best", system='Say "yes".', example=[str(files / "0.png")])
    write_space(tmp_path / "space", title="My page", **given(arguments) | {"model": str(checkpoint)})
    return tmp_path / "space"


def test_a_space_has_what_hugging_face_asks_for_and_the_options(space, files):
    front_matter = yaml.safe_load((space / "README.md").read_text().split("---")[1])
    assert front_matter["sdk"] == "gradio" and front_matter["sdk_version"] == gr.__version__
    assert front_matter["title"] == "My page" and front_matter["app_file"] == "app.py"
    assert front_matter["python_version"] in SpecifierSet(metadata("aligngpt")["Requires-Python"])
    assert (space / "requirements.txt").read_text().startswith("aligngpt[page]==")
    text = (space / "app.py").read_text()
    compile(text, "app.py", "exec")
    assert 'system="Say \\"yes\\"."' in text and 'example=["example_0.png"]' in text
    assert (space / "example_0.png").read_bytes() == (files / "0.png").read_bytes()


@pytest.mark.slow
def test_a_space_runs_the_page(space, run_python):
    # As on ZeroGPU, where what comes after torch does nothing
    (space / "spaces.py").write_text("import sys\nassert 'torch' not in sys.modules\nprint('first')\n")
    code = """
import json
import app
values = {part["props"].get("label"): part["props"].get("value") for part in app.page.config["components"]}
print(json.dumps([type(app.page).__name__, app.page.title, values["Alignment level"]]))
"""
    printed = run_python(code, space).strip().splitlines()
    assert printed[0] == "first" and json.loads(printed[-1]) == ["Blocks", "My page", "7 (best)"]


def test_a_space_that_cannot_be_written_leaves_nothing(files, tmp_path):
    with pytest.raises(ValueError, match="bad.png"):
        write_space(tmp_path / "space", "you/model", example=[str(files / "bad.png")])
    assert not (tmp_path / "space").exists()
    write_space(tmp_path / "space", "you/model")
    with pytest.raises(FileExistsError):
        write_space(tmp_path / "space", "you/model")


@pytest.mark.slow
def test_the_picture_of_a_repository_is_found(files, tmp_path, run_python):
    code = f"""
from huggingface_hub import HfApi
from aligngpt.serving.examples import find_own_example
HfApi().create_repo("tester/plain")
HfApi().create_repo("tester/model")
HfApi().upload_file(repo_id="tester/model", path_in_repo="example.png", path_or_fileobj={str(files / "0.png")!r})
print(*find_own_example("tester/model"))
print([find_own_example(name) for name in ("tester/plain", "tester/nothing", "no/such/name")])
"""
    with LoopbackHub() as hub:
        environment = hub.env(token="write", cache=tmp_path / "home")
        found, others = run_python(code, tmp_path, environment).splitlines()[-2:]
    assert Path(found).read_bytes() == (files / "0.png").read_bytes()
    assert others == "[[], [], []]"


def test_without_gradio_the_package_to_install_is_told(checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "aligngpt.serving.page", raising=False)
    with pytest.raises(Mistakes, match=r"gradio is needed for the page: pip install 'aligngpt\[page\]'"):
        load_page(PageArguments(str(checkpoint)))


def test_a_folder_is_shown_by_its_name_alone(checkpoint):
    assert load_page(PageArguments(str(checkpoint))).title == checkpoint.name
