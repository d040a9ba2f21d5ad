"""The page as a Hugging Face Space: a folder with the application, what it needs, and the Space's front matter."""

import os
from importlib.metadata import PackageNotFoundError, version

import yaml

from aligngpt.processing.atomic_output import new_folder


APP = '''"""A page to talk to {model}; `aligngpt page {model}` shows the same on a machine of your own."""

import os

from aligngpt.serving.answering import Assistant
from aligngpt.serving.arguments import ModelArguments
from aligngpt.serving.loading import load_model
from aligngpt.serving.page import STYLE, build_page


# On ZeroGPU a process sees its GPU only while it answers, and a model is put there all the same
device = "cuda" if os.environ.get("SPACES_ZERO_GPU") else "auto"
assistant = Assistant(*load_model(ModelArguments({model!r}, device=device)))
page = build_page(assistant, {title!r})

if __name__ == "__main__":
    page.queue(max_size=64).launch(css=STYLE)
'''
LATEST_SEEN = "6.31.0"  # of gradio, where it is not installed


def write_space(folder: str | os.PathLike, model: str, title: str | None = None) -> None:
    """
    Writes a Space.

    Args:
        folder: to be made.
        model (`str`): Hub id.
        title (`str`, *optional*): of the Space; the model's name if not given.

    Raises:
        FileExistsError: if the folder is there and not empty.
    """
    try:
        gradio = version("gradio")
    except PackageNotFoundError:
        gradio = LATEST_SEEN
    title = title or model.rpartition("/")[2]
    front_matter = {
        "title": title,
        "sdk": "gradio",
        "sdk_version": gradio,
        "app_file": "app.py",
        "models": [model],
        "tags": ["aligngpt"],
    }
    with new_folder(folder) as path:
        (path / "app.py").write_text(APP.format(model=model, title=title), encoding="utf-8")
        (path / "requirements.txt").write_text(f"aligngpt[page]=={version('aligngpt')}\n", encoding="utf-8")
        text = f"A page to talk to [{model}](https://huggingface.co/{model}), with its alignment levels and gate.\n"
        header = yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True)
        (path / "README.md").write_text(f"---\n{header}---\n\n{text}", encoding="utf-8")
