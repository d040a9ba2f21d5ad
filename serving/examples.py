"""Pictures that a page shows to click on."""

import os
from collections.abc import Sequence


def find_own_example(model: str, revision: str = "main") -> list[str]:
    """The path of `example.png` of a model's folder or Hub repository, if it has one."""
    if os.path.isdir(model):
        own = os.path.join(model, "example.png")
        return [own] if os.path.isfile(own) else []
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        return [hf_hub_download(model, "example.png", revision=revision)]
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError):  # if all of it is missing, loading it tells
        return []


def check_examples(paths: Sequence[str | os.PathLike]) -> None:
    """
    Whether pictures can be used.

    Raises:
        ValueError: with the name of the first that cannot.
    """
    from aligngpt.processing.image_conversion_aligngpt import ImageError, load_rgb_image
    from aligngpt.processing.image_loading_aligngpt import read_image_file

    for path in paths:
        try:
            load_rgb_image(read_image_file(path))
        except ImageError as error:
            raise ValueError(f"--example {path}: {error}") from error
