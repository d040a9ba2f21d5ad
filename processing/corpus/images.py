"""Images of a corpus: found below its image folder, and opened as all are, or refused with the kind of fault."""

import os
from pathlib import PureWindowsPath
from typing import Any

from PIL import Image

from aligngpt.processing.image_conversion_aligngpt import ImageError, load_rgb_image
from aligngpt.processing.image_loading_aligngpt import read_image, read_image_file

from .faults import Fault


class ImageFolderNeededError(ValueError):
    """An image is a path, and nobody said where it starts."""


def open_image(source: Any, image_folder: str | None = None) -> tuple[Image.Image, list[str]]:
    """
    The image as upright RGB of 8 bits a channel, and what had to be converted for that (the words are
    [`~aligngpt.processing.image_conversion_aligngpt.load_rgb_image`]'s, which scoring, training and inference share).

    Args:
        source (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, `bytes`, `str` or `dict`): the image, an encoded file,
            a path below `image_folder`, a `data:` URL, or `{"bytes": ..., "path": ...}` as datasets has it, where
            bytes win.
        image_folder (`str`, *optional*): needed where sources are paths. Paths as Windows writes them are understood
            everywhere, unless a file is called so.

    Raises:
        Fault: `missing`, `unreadable` (also a pipe or device), `outside_image_folder` (also another drive or a share),
            `zero_sized`, `truncated`, `corrupt`, `decompression_bomb` or `extreme_shape`.
        ImageFolderNeededError: if the source is a path and there is no image folder.
    """
    if isinstance(source, dict):
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    try:
        return load_rgb_image(_read_file(source, image_folder) if isinstance(source, str) else source)
    except ImageError as error:
        raise Fault(error.kind, str(error)) from error


def _read_file(path: str, image_folder: str | None) -> bytes:
    name = repr(path[:200])
    if path.startswith("data:"):
        return read_image(path)
    if image_folder is None:
        raise ImageFolderNeededError(
            f"The image {name} is a path: name the folder that it starts from as the image folder."
        )
    try:
        return read_image_file(_find_below(path, image_folder))
    except ImageError as error:
        reason = error
    if reason.kind == "missing" and PureWindowsPath(path).drive:
        raise Fault("outside_image_folder", f"The image {name} is on a drive or share, not in {image_folder!r}.")
    if reason.kind == "missing" and "\\" in path:
        try:
            return read_image_file(_find_below(path.replace("\\", "/"), image_folder))
        except ImageError as error:
            reason = error
    subject = "There is no image" if reason.kind == "missing" else "The image cannot be read:"
    hint = " It is a URL: download the images first." if "://" in path else ""
    raise Fault(reason.kind, f"{subject} {name} in {image_folder!r}: {reason}{hint}") from reason


def _find_below(path: str, image_folder: str) -> str:
    root = os.path.abspath(image_folder)
    # By the words of the path: a link inside the folder was put there by its owner, `../` was written by the corpus
    full = os.path.abspath(os.path.join(root, path))
    try:
        is_below = os.path.commonpath([root, full]) == root
    except ValueError:  # Windows: they are on different drives
        is_below = False
    if not is_below:
        raise Fault("outside_image_folder", f"The image {path[:200]!r} is outside of {image_folder!r}.")
    return full
