# Copyright 2026 the aligngpt authors. Licensed under the Apache License, Version 2.0 (see LICENSE):
# http://www.apache.org/licenses/LICENSE-2.0
"""
An image of any form as the picture that a model sees: upright RGB of 8 bits a channel. One way for scoring, training
and inference. Copied to the Hub beside the processor: imports only Pillow and numpy.
"""

import io
import math
import sys
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError


# What Pillow decodes by itself: not EPS, for which it runs Ghostscript, nor metafiles, which Windows draws. TGA has no
# signature, and comes after those which have. HEIF and JXL are of plug-ins that a user may have registered
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "AVIF", "JPEG2000", "ICO", "ICNS", "PPM", "PCX")
FORMATS += ("DDS", "SGI", "QOI", "PSD", "HEIF", "JXL", "TGA")
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
# Orders of the two bytes of a colour, as Pillow names them
OTHER_ORDERS = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
SWAPPED = {f"{mode};16{name}": f"{mode};16{OTHER_ORDERS[name]}" for mode in ("RGB", "RGBA") for name in OTHER_ORDERS}
MAX_ASPECT_RATIO = 100  # with a short side of 336 that makes 34 MB; 1 x 3000 makes 1 GB, in several copies
MAX_SIDE = 8192  # padded to a square that makes 200 MB, a JPEG's longest side 13 GB


class ImageError(ValueError):
    """
    Why an image cannot be used: `kind` is `missing`, `unreadable`, `zero_sized`, `truncated`, `corrupt`,
    `decompression_bomb` or `extreme_shape`, as explained in `aligngpt.processing.corpus.faults`.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind

    def __reduce__(self):  # exceptions with two arguments do not survive a worker process otherwise
        return type(self), (self.kind, str(self))


def load_rgb_image(image: Any, channels_first: bool | None = None) -> tuple[Image.Image, list[str]]:
    """
    The image as upright RGB of 8 bits a channel, and what had to be converted for that, any of

    - `animated`: the first frame is taken (of a Pillow image, the frame it stands at);
    - `exif_rotated`: turned as its metadata say. Broken metadata turn nothing;
    - `16-bit`, `float`: the values are scaled by the smallest range that holds them all: 0..255, 0..4095 (12 bits in
      16) or 0..65535, of floats also 0..1. It is told by the values alone, so that a file and its array are the same
      picture; the price is that a 16-bit picture which uses less than a sixteenth of its range, which would be all but
      black, is shown 16 times brighter. (Of 16-bit colours that Pillow has loaded already, it kept the upper 8);
    - `transparent`: put on white;
    - `palette`, `cmyk`, `ycbcr`, `lab`, `hsv`: another way of writing colours;
    - `reduced`: a side above `MAX_SIDE` is shortened by a whole number, for padding to a square costs its square.

    Args:
        image (`bytes`, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): a file of one of `FORMATS`, or a picture;
            arrays are (height, width), or with 1 (grey), 2 (grey, alpha), 3 or 4 (alpha) channels, last or first.
        channels_first (`bool`, *optional*): of arrays whose shape can be read both ways; by default as is usual,
            `False` for numpy and `True` for torch.

    Raises:
        ImageError: `missing` (no image at all), `zero_sized`, `truncated`, `corrupt`, `decompression_bomb` (more
            pixels than `PIL.Image.MAX_IMAGE_PIXELS`) or `extreme_shape` (one side more than `MAX_ASPECT_RATIO` times
            the other).
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # libraries switch it on for everyone; half-grey pictures have scores too
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bombs, which are refused, of broken metadata and of transparency
            converted: list[str] = []
            if isinstance(image, bytes):
                image = _identify(image)
            elif hasattr(image, "detach") or isinstance(image, np.ndarray):
                image = _read_array(image, channels_first, converted)
            elif not isinstance(image, Image.Image):
                raise ImageError("missing", f"An image is a path, bytes or a picture, not {type(image).__name__}.")
            return _convert(image, converted), converted
    except ImageError:
        raise
    except Exception as error:  # decoders and readers of metadata raise whatever they stumble over
        kind = "truncated" if isinstance(error, EOFError) or "truncated" in str(error).lower() else "corrupt"
        kind = "decompression_bomb" if isinstance(error, Image.DecompressionBombError) else kind
        raise ImageError(kind, f"{type(error).__name__}: {error}") from error


def _identify(data: bytes) -> Image.Image:
    if not data:
        raise ImageError("zero_sized", "The image has no bytes.")
    Image.init()
    try:
        return Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError as error:
        raise ImageError("corrupt", f"These {len(data)} bytes are no image of a known format.") from error


def _check_size(width: int, height: int) -> None:
    size = f"The picture is {width} x {height} pixels"
    if 0 in (width, height):
        raise ImageError("zero_sized", f"{size}.")
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise ImageError("decompression_bomb", f"{size}, more than {Image.MAX_IMAGE_PIXELS} in all.")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError("extreme_shape", f"{size}: one side is more than {MAX_ASPECT_RATIO} times the other.")


def _read_array(array: Any, channels_first: bool | None, converted: list[str]) -> Image.Image:
    if channels_first is None:
        channels_first = not isinstance(array, np.ndarray)
    if hasattr(array, "detach"):  # a tensor of torch: numpy has no bfloat16
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    if array.ndim == 3:
        axis = next((axis for axis in ((0, -1) if channels_first else (-1, 0)) if 1 <= array.shape[axis] <= 4), None)
        array = array if axis is None else np.moveaxis(array, axis, -1)
    if array.ndim not in (2, 3) or array.shape[2:] > (4,) or array.dtype.kind not in "buif":
        raise ImageError("corrupt", f"An array of shape {array.shape} and type {array.dtype} is no picture.")
    _check_size(array.shape[1], array.shape[0])
    array = array[..., 0] if array.shape[2:] == (1,) else array
    return Image.fromarray(np.ascontiguousarray(_scale(array, converted)))


def _scale(values: np.ndarray, converted: list[str]) -> np.ndarray:
    """The values as 8 bits, by the range that `load_rgb_image` describes."""
    if values.dtype.kind == "b":
        return values * np.uint8(255)
    is_float, low, high = values.dtype.kind == "f", values.min().item(), values.max().item()
    margin = 1 + 1 / 255 if is_float else 1  # resampling overshoots
    top = next((top for top in (1, 255, 4095, 65535)[not is_float :] if high <= top * margin), 0)
    if not top or low < top * (1 - margin) or math.isnan(low):
        raise ImageError("corrupt", f"Values from {low} to {high} are of no known range; 0..65535 is the largest.")
    if is_float or top > 255:
        converted.append("float" if is_float else "16-bit")
    if is_float:
        return (values * np.float32(255 / top)).clip(0, 255).round().astype(np.uint8)
    table = (np.arange(top + 1) * 255 / top).round().astype(np.uint8)
    return table[values]


def _convert(given: Image.Image, converted: list[str]) -> Image.Image:
    image = given
    _check_size(*image.size)
    if isinstance(image, ImageFile.ImageFile) and image.format not in FORMATS:
        raise ImageError("corrupt", f"Images of the format {image.format} are not opened.")
    if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO: a photograph with a preview
        converted.append("animated")
    is_turned = image.format == "TIFF" and _get_orientation(image) in TURNS  # by Pillow, as it loads
    low_bytes = _read_low_bytes(image)
    image.load()
    orientation = _get_orientation(image)
    if low_bytes is not None:
        image = _from_numbers(np.asarray(image).astype(np.uint16) << 8 | low_bytes, image, converted)
    elif image.mode == "F" or image.mode.startswith("I"):
        image = _from_numbers(np.asarray(image), image, converted)
    if orientation in TURNS:
        image = image.transpose(TURNS[orientation])  # ImageOps.exif_transpose writes the metadata anew, and may fail
    if orientation in TURNS or is_turned:
        converted.append("exif_rotated")
    if image.mode in ("P", "PA"):
        converted.append("palette")
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        converted.append(image.mode.lower())
    if image.has_transparency_data:
        image = _put_on_white(image, converted)
    image = image if image.mode == "RGB" else image.convert("RGB")
    if max(image.size) > MAX_SIDE:
        converted.append("reduced")
        image = image.reduce(math.ceil(max(image.size) / MAX_SIDE))
    if image is not given:  # its metadata told of another picture, and would turn this one if it is opened again
        image.info = {}
    return image


def _get_orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(EXIF_ORIENTATION)
    except Exception:  # an image with broken metadata is still an image
        return None


def _read_low_bytes(image: Image.Image) -> np.ndarray | None:
    """The lower 8 of the 16 bits of colours in a file. Pillow keeps the upper ones, and in the other order these."""
    tiles = [
        (tile, *(tile.args if isinstance(tile.args, tuple) else (tile.args,))) for tile in getattr(image, "tile", [])
    ]
    if not tiles or not all(isinstance(order, str) and order in SWAPPED for _, order, *_ in tiles):
        return None
    place = image.fp.tell()
    image.fp.seek(0)
    swapped = Image.open(io.BytesIO(image.fp.read()), formats=[image.format])
    image.fp.seek(place)
    swapped.tile = [tile._replace(args=(SWAPPED[order], *others)) for tile, order, *others in tiles]
    return np.asarray(swapped)


def _from_numbers(values: np.ndarray, file: Image.Image, converted: list[str]) -> Image.Image:
    image, key = Image.fromarray(_scale(values, converted)), file.info.get("transparency")
    if isinstance(key, int | tuple):
        is_key = values == np.array(key)
        is_key = is_key.all(-1) if values.ndim == 3 else is_key
        image.putalpha(Image.fromarray(~is_key * np.uint8(255)))
    return image


def _put_on_white(image: Image.Image, converted: list[str]) -> Image.Image:
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:  # of 16 bits, as Pillow keeps the upper 8
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    picture = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if picture.getchannel("A").getextrema()[0] < 255:
        converted.append("transparent")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture
