"""The page as a Hugging Face Space: a folder with the application, what it needs, and the Space's front matter."""

import json
import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from aligngpt.processing.atomic_output import new_folder

from .examples import check_examples


APP = '''"""A page to talk to {model}; `aligngpt page {model}` shows the same on a machine of your own."""

import os
from contextlib import suppress


with suppress(ImportError):  # before torch: on ZeroGPU it shows a GPU that the process has only while it answers
    import spaces  # noqa: F401

from aligngpt.serving.page import launch
from aligngpt.serving.page_command import PageArguments, load_page


page = load_page(
    PageArguments(
{arguments}
        device="cuda" if os.environ.get("SPACES_ZERO_GPU") else "auto",
    )
)

if __name__ == "__main__":
    launch(page)
'''
PYTHON = "3.12"  # Spaces have an earlier one by default than the package runs with
LATEST_SEEN = "6.31.0"  # of gradio, where it is not installed


def write_space(folder: str | os.PathLike, model: str, title: str | None = None, **options: Any) -> None:
    """
    Writes a Space.

    Args:
        folder: to be made.
        model (`str`): Hub id.
        title (`str`, *optional*): of the Space; the model's name if not given.
        options: other arguments of `aligngpt page`; the pictures of `example` are copied into the Space.

    Raises:
        FileExistsError: if the folder is there and not empty.
        ValueError: if an example is no picture.
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
        "python_version": PYTHON,
        "app_file": "app.py",
        "models": [model],
        "tags": ["aligngpt"],
    }
    pictures = [Path(picture) for picture in options.pop("example", ())]
    check_examples(pictures)
    copies = [f"example_{number}{picture.suffix}" for number, picture in enumerate(pictures)]
    values = {"model": model, "title": title, **options, **({"example": copies} if copies else {})}
    # Strings in double quotes, as the rest of the file has them
    literals = {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, str | list) else repr(value)
        for name, value in values.items()
    }
    arguments = "\n".join(f"        {name}={literal}," for name, literal in literals.items())
    with new_folder(folder) as path:
        for picture, copy in zip(pictures, copies):
            shutil.copyfile(picture, path / copy)
        (path / "app.py").write_text(APP.format(model=model, arguments=arguments), encoding="utf-8")
        (path / "requirements.txt").write_text(f"aligngpt[page]=={version('aligngpt')}\n", encoding="utf-8")
        text = f"A page to talk to [{model}](https://huggingface.co/{model}), with its alignment levels and gate.\n"
        header = yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True)
        (path / "README.md").write_text(f"---\n{header}---\n\n{text}", encoding="utf-8")
