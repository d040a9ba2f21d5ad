"""Images of a corpus: opened as the RGB picture that a model sees, or refused with the kind of fault."""

import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from .faults import Fault


EXIF_ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageFolderNeededError(ValueError):
    """An image is a path, and nobody said where it starts."""


def open_image(source: Any, image_folder: str | None = None) -> tuple[Image.Image, list[str]]:
    """
    The image as upright RGB of 8 bits a channel, and what had to be converted for that: any of `animated` (the first
    frame is taken), `cmyk`, `palette`, `16-bit` (scaled; Pillow would clip it to white), `exif_rotated`.

    Args:
        source (`PIL.Image.Image`, `bytes`, `str` or `dict`): the image, an encoded file, a path below `image_folder`,
            or `{"bytes": ..., "path": ...}` as datasets has it, where bytes win.
        image_folder (`str`, *optional*): needed where sources are paths.

    Raises:
        Fault: `missing`, `unreadable`, `outside_image_folder`, `zero_sized`, `truncated`, `corrupt` or
            `decompression_bomb` (more pixels than `PIL.Image.MAX_IMAGE_PIXELS`).
        ImageFolderNeededError: if the source is a path and there is no image folder.
    """
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, str):
        source = _read_file(source, image_folder)
    if isinstance(source, bytes):
        image = _decode(source)
    elif isinstance(source, Image.Image):
        image = source
    else:
        raise Fault("missing", f"An image is a path, bytes or a picture, not {type(source).__name__}.")

    if 0 in image.size:
        raise Fault("zero_sized", f"The picture is {image.size[0]} x {image.size[1]} pixels.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of broken metadata and of transparency
        try:
            return _to_upright_rgb(image)
        except Exception as error:  # Pillow's converters and readers of metadata raise whatever they stumble over
            raise Fault("corrupt", f"{type(error).__name__}: {error}") from error


def _to_upright_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    converted = []
    if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO: a photograph with a preview
        converted.append("animated")
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION)
    except Exception:  # an image with broken metadata is still an image
        orientation = None
    if orientation in TURNS:
        converted.append("exif_rotated")
        image = image.transpose(TURNS[orientation])  # ImageOps.exif_transpose writes the metadata anew, and may fail
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.max(initial=0) > 255:
            converted.append("16-bit")
            image = Image.fromarray((values.astype(np.float64) / 257).clip(0, 255).round().astype(np.uint8))
    elif image.mode in ("P", "CMYK"):
        converted.append({"P": "palette", "CMYK": "cmyk"}[image.mode])
    return image if image.mode == "RGB" else image.convert("RGB"), converted


def _read_file(path: str, image_folder: str | None) -> bytes:
    if image_folder is None:
        raise ImageFolderNeededError(
            f"The image {path[:200]!r} is a path: name the folder that it starts from as the image folder."
        )
    root = os.path.abspath(image_folder)
    # By the words of the path: a link inside the folder was put there by its owner, `../` was written by the corpus
    full = os.path.abspath(os.path.join(root, path))
    if os.path.commonpath([root, full]) != root:
        raise Fault("outside_image_folder", f"The image {path!r} is outside of {image_folder!r}.")
    try:
        return Path(full).read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError) as error:
        hint = " It is a URL: download the images first." if "://" in path else ""
        raise Fault("missing", f"There is no image {path[:200]!r} in {image_folder!r}.{hint}") from error
    except OSError as error:
        raise Fault("unreadable", f"The image {path[:200]!r} cannot be read: {error.strerror}") from error


def _decode(data: bytes) -> Image.Image:
    if not data:
        raise Fault("zero_sized", "The image has no bytes.")
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # libraries switch it on for everyone; half-grey pictures have scores too
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bombs, which are refused below, and of broken metadata
            image = Image.open(io.BytesIO(data))
            width, height = image.size
            if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
                raise Fault("decompression_bomb", f"The image has {width} x {height} pixels.")
            image.load()
            return image
    except Fault:
        raise
    except Image.DecompressionBombError as error:
        raise Fault("decompression_bomb", str(error)) from error
    except UnidentifiedImageError as error:
        raise Fault("corrupt", f"These {len(data)} bytes are no image of a known format.") from error
    except Exception as error:  # decoders raise whatever their parser stumbles over
        kind = "truncated" if isinstance(error, EOFError) or "truncated" in str(error).lower() else "corrupt"
        raise Fault(kind, f"{type(error).__name__}: {error}") from error
