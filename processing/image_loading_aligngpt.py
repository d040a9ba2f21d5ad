# Copyright 2026 the aligngpt authors. Licensed under the Apache License, Version 2.0 (see LICENSE):
# http://www.apache.org/licenses/LICENSE-2.0
"""
The images that are given to the processor, opened: from paths, URLs, base64, bytes, arrays or Pillow's. Copied to the
Hub beside it: imports only huggingface_hub, and the sibling that makes RGB pictures of them.
"""

import base64
import os
import stat
from typing import Any

from huggingface_hub.utils import httpx

from .image_conversion_aligngpt import ImageError, load_rgb_image


MIN_BASE64 = 40  # the smallest GIF has 35 bytes; a shorter string is rather the name of a file that is not there


def open_images(images: Any, do_rescale: bool = True, channels_first: bool | None = None) -> list[Any] | None:
    """
    The images of a batch as RGB pictures: a list, or where one item is a list or None, a list of lists; None if there
    are no images.

    Args:
        images: one image or a list, flat or with a list (or None) for each sample: paths, URLs, base64, encoded
            bytes, `{"bytes": ..., "path": ...}`, Pillow images, arrays and tensors of one image or, with 4 axes,
            several.
        do_rescale (`bool`): with `False`, arrays of floats are left as they are: somebody has rescaled them.
        channels_first (`bool`, *optional*): see [`load_rgb_image`].

    Raises:
        ImageError: names the image by its place.
    """
    images = _split(images)
    if not isinstance(images, list):
        images = [] if images is None else [images]
    if not any(image is None or isinstance(image, list) for image in images):
        opened = [
            _open_image(image, f"Image {index}", do_rescale, channels_first) for index, image in enumerate(images)
        ]
        return opened or None
    opened = []
    for sample, row in enumerate(images):
        row = row if isinstance(row, list) else [] if row is None else [row]
        names = (f"Image {index} of sample {sample}" for index in range(len(row)))
        opened.append([_open_image(image, name, do_rescale, channels_first) for image, name in zip(row, names)])
    return opened if any(opened) else None


def _split(images: Any) -> Any:
    """Lists for tuples and for arrays of several images."""
    if isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4:
        return [_split(image) for image in images]
    return images


def _open_image(image: Any, name: str, do_rescale: bool, channels_first: bool | None) -> Any:
    if not do_rescale and "float" in str(getattr(image, "dtype", "")):
        return image
    try:
        if isinstance(image, dict):
            image = image.get("path") if image.get("bytes") is None else image["bytes"]
        if isinstance(image, (str, os.PathLike)):
            name = f"{name} ({str(image)[:200]!r})"
            image = read_image(image)
        return load_rgb_image(image, channels_first)[0]
    except ImageError as error:
        raise ImageError(error.kind, f"{name}: {error}") from error


def read_image_file(path: str | os.PathLike) -> bytes:
    """
    The bytes of a file. Pipes and devices are refused before they are opened: reading them may never end.

    Raises:
        ImageError: `missing` or `unreadable`; the message does not name the path.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            with open(path, "rb") as file:
                return file.read()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError("missing", "there is no such file.") from error
    except OSError as error:
        raise ImageError("unreadable", f"it cannot be read: {error.strerror}.") from error
    except ValueError as error:  # characters that no file name has
        raise ImageError("missing", f"there can be no such file: {error}.") from error
    if stat.S_ISDIR(mode):
        raise ImageError("missing", "it is a folder.")
    raise ImageError("unreadable", "it is no file, but a pipe or a device.")


def read_image(source: str | os.PathLike, timeout: float | None = None) -> bytes:
    """
    The encoded image that a user names: by a path, a URL (`http:`, `https:`, `data:`), or as base64.

    Raises:
        ImageError: `missing` or `unreadable`; the message does not name the source.
    """
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        try:
            return httpx.get(source, timeout=timeout, follow_redirects=True).raise_for_status().content
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ImageError("missing", f"it cannot be fetched: {error}") from error
    if isinstance(source, str) and source.startswith("data:"):
        data = _decode_base64(source.partition(",")[2])
        if data is None:
            raise ImageError("corrupt", "its data are no base64.")
        return data
    try:
        return read_image_file(source)
    except ImageError as error:
        data = _decode_base64(source) if isinstance(source, str) and len(source) >= MIN_BASE64 else None
        if data is None:
            raise ImageError(error.kind, str(error).removesuffix(".") + ", nor is it a URL or base64.") from error
        return data


def _decode_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        return None
