"""Odd image files, made byte by byte where Pillow cannot, each with what it shows, worked out without the package."""

import io
import struct
import zlib

import numpy as np
import PIL
from PIL import Image


HEIGHT, WIDTH = 8, 12
_RANDOM = np.random.default_rng(0)
RGB = _RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY = _RANDOM.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
ALPHA = np.tile(np.array([0, 255, 128, 30], dtype=np.uint8), (HEIGHT, WIDTH // 4))
WORDS = np.linspace(0, 65535, HEIGHT * WIDTH).round().astype(np.uint16).reshape(HEIGHT, WIDTH)
TWELVE = np.linspace(0, 4095, HEIGHT * WIDTH).round().astype(np.uint16).reshape(HEIGHT, WIDTH)
TWELVE_COLOURS = np.dstack([TWELVE, TWELVE[::-1], TWELVE[:, ::-1]])
ORIENTATION = 0x0112
PILLOW_READS_YCBCR = int(PIL.__version__.split(".")[0]) >= 13  # before, uncompressed TIFFs of it seem cut off


def grey(values):
    """Shades from 0 to 255 as an RGB picture."""
    return np.repeat(np.asarray(values).round().astype(np.uint8)[..., None], 3, axis=2)


def on_white(colours, alpha):
    share = np.asarray(alpha)[..., None] / 255
    return (colours * share + 255 * (1 - share)).round().astype(np.uint8)


def flat(*colour, height=HEIGHT, width=WIDTH):
    return np.full((height, width, len(colour)), colour, dtype=np.uint8)


def encode(picture, file_format, **options):
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    with io.BytesIO() as file:
        image.save(file, file_format, **options)
        return file.getvalue()


def turned(orientation):
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def png(values, depth, colour_type, size=None, **chunks):
    """A PNG of rows of bytes, with chunks that Pillow does not write."""
    height, width = size or (HEIGHT, WIDTH)
    chunks = {"IHDR": struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0), **chunks}
    chunks |= {"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in values)), "IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name.encode() + data + struct.pack(">I", zlib.crc32(name.encode() + data))
        for name, data in chunks.items()
    )


def tiff(data, bits, channels=1, compression=1):
    """A TIFF of one strip of grey, or of colours."""
    tags = {256: WIDTH, 257: HEIGHT, 258: bits, 259: compression, 262: 1 if channels == 1 else 2, 273: 8}
    tags |= {277: channels, 278: HEIGHT, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def pack_12_bits(values):
    pairs = values.reshape(-1, 2).astype(int)
    packed = [(first >> 4, (first & 15) << 4 | second >> 8, second & 255) for first, second in pairs]
    return np.array(packed, dtype=np.uint8).tobytes()


def palette(transparency):
    """A picture of four colours, and what it shows where some of them are transparent."""
    indices = (np.arange(HEIGHT * WIDTH) % 4).astype(np.uint8).reshape(HEIGHT, WIDTH)
    colours = np.array([[250, 10, 20], [0, 200, 0], [0, 0, 100], [90, 90, 0]])
    image = Image.fromarray(indices, "P")
    image.putpalette(colours.astype(np.uint8).tobytes())
    alpha = np.array([*transparency, 255, 255, 255, 255][:4])
    return image, on_white(colours[indices], alpha[indices])


def odd_images():
    """Names of files to their bytes, and the pixels that they show (height, width, 3), or the kind of fault."""
    files = {}
    by_index, index_shown = palette([255, 0])
    by_bytes, bytes_shown = palette([0, 128, 255, 60])
    rgba, la = np.dstack([RGB, ALPHA]), np.dstack([GREY, ALPHA])
    shown, grey_shown = on_white(RGB, ALPHA), on_white(grey(GREY), ALPHA)
    # Turned as EXIF means it: where the stored picture's first row and column belong
    turns = {2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2)}
    turns |= {6: np.rot90(RGB, -1), 7: RGB[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(RGB)}
    for orientation, upright in turns.items():
        files[f"exif-{orientation}.png"] = encode(RGB, "PNG", exif=turned(orientation)), upright
    files["exif-9.png"] = encode(RGB, "PNG", exif=turned(9)), RGB
    files["exif-6.tiff"] = encode(RGB, "TIFF", exif=turned(6)), turns[6]
    files["exif-8.webp"] = encode(RGB, "WEBP", lossless=True, exif=turned(8)), turns[8]
    halves = np.concatenate([flat(200, 30, 40), flat(20, 40, 220)], axis=1)
    files["exif-6.jpg"] = encode(halves, "JPEG", quality=100, subsampling=0, exif=turned(6)), np.rot90(halves, -1)
    files["exif-3-of-16-bits.png"] = encode(WORDS, "PNG", exif=turned(3)), grey(WORDS[::-1, ::-1] / 257)
    files["exif-6-transparent.png"] = encode(rgba, "PNG", exif=turned(6)), np.rot90(shown, -1)
    files["broken-exif.webp"] = encode(RGB, "WEBP", lossless=True, exif=b"garbage!"), RGB
    # Transparency
    files["rgba.png"] = encode(rgba, "PNG"), shown
    files["rgba.webp"] = encode(rgba, "WEBP", lossless=True), shown
    files["rgba.tiff"] = encode(rgba, "TIFF"), shown
    files["rgba.tga"] = encode(rgba, "TGA"), shown
    files["rgba.dds"] = encode(rgba, "DDS"), shown
    files["rgba.jp2"] = encode(rgba, "JPEG2000"), shown
    files["opaque.png"] = encode(np.dstack([RGB, flat(255)]), "PNG"), RGB
    files["la.png"] = encode(la, "PNG"), grey_shown
    files["la.tiff"] = encode(la, "TIFF"), grey_shown
    green = flat(9, 80, 7, height=16, width=16)
    icon = np.dstack([green, flat(100, height=16, width=16)])
    files["rgba.ico"] = encode(icon, "ICO"), on_white(green, icon[..., 3])
    files["rgba.avif"] = encode(flat(200, 100, 50, 128), "AVIF", quality=100), flat(227, 177, 152)
    files["palette.png"] = encode(palette([])[0], "PNG"), palette([])[1]
    files["palette-index.png"] = encode(by_index, "PNG", transparency=1), index_shown
    files["palette-bytes.png"] = encode(by_bytes, "PNG", transparency=bytes([0, 128, 255, 60])), bytes_shown
    files["palette.gif"] = encode(by_index, "GIF", transparency=1), index_shown
    keyed = np.where((RGB[2, 3] == RGB).all(-1, keepdims=True), 255, RGB).astype(np.uint8)
    files["key.png"] = png(RGB, 8, 2, tRNS=struct.pack(">HHH", *RGB[2, 3])), keyed
    shades = np.where(GREY[0, 0] == GREY, 255, GREY)
    files["grey-key.png"] = png(GREY, 8, 0, tRNS=struct.pack(">H", GREY[0, 0])), grey(shades)
    bits = np.packbits(GREY > 127, axis=1)
    files["bit-key.png"] = png(bits, 1, 0, tRNS=struct.pack(">H", 0)), flat(255, 255, 255)
    key = np.where(WORDS[3, 3] == WORDS, 255, (WORDS / 257).round())
    files["16-bit-key.png"] = png(WORDS.astype(">u2"), 16, 0, tRNS=struct.pack(">H", WORDS[3, 3])), grey(key)
    colours = RGB.astype(">u2") * 257
    files["16-bit-colour-key.png"] = png(colours, 16, 2, tRNS=struct.pack(">HHH", *colours[2, 3])), keyed
    # Depth
    files["bits.png"] = png(bits, 1, 0), grey((GREY > 127) * 255)
    files["bits.tiff"] = encode(GREY > 127, "TIFF"), grey((GREY > 127) * 255)
    files["grey.png"] = encode(GREY, "PNG"), grey(GREY)
    files["16-bit.png"] = encode(WORDS, "PNG"), grey(WORDS / 257)
    files["16-bit.tiff"] = encode(WORDS, "TIFF"), grey(WORDS / 257)
    big_endian = Image.frombytes("I;16B", (WIDTH, HEIGHT), WORDS.astype(">u2").tobytes())
    files["16-bit-big-endian.tiff"] = encode(big_endian, "TIFF"), grey(WORDS / 257)
    files["16-bit-lzw.tiff"] = encode(WORDS, "TIFF", compression="tiff_lzw"), grey(WORDS / 257)
    files["16-bit-colour.png"] = png(colours, 16, 2), RGB
    files["16-bit-colour.tiff"] = tiff(colours.astype("<u2").tobytes(), 16, 3), RGB
    files["16-bit-rgba.png"] = png(np.dstack([colours, ALPHA.astype(">u2") * 257]), 16, 6), shown
    deep = TWELVE_COLOURS
    deep_shown = (deep / 4095 * 255).round().astype(np.uint8)
    files["12-in-16-bit-colour.png"] = png(deep.astype(">u2"), 16, 2), deep_shown
    files["12-in-16-bit-colour.tiff"] = tiff(deep.astype("<u2").tobytes(), 16, 3), deep_shown
    compressed = tiff(zlib.compress(deep.astype("<u2").tobytes()), 16, 3, 8)
    files["12-in-16-bit-colour-compressed.tiff"] = compressed, deep_shown
    files["12-in-16-bit-colour-key.png"] = (
        png(deep.astype(">u2"), 16, 2, tRNS=struct.pack(">HHH", *deep[0, 0])),
        np.where((deep[0, 0] == deep).all(-1, keepdims=True), 255, deep_shown).astype(np.uint8),
    )
    files["12-in-16-bit.png"] = encode(TWELVE, "PNG"), grey(TWELVE / 4095 * 255)
    files["12-in-16-bit.tiff"] = encode(TWELVE, "TIFF"), grey(TWELVE / 4095 * 255)
    files["12-bit.tiff"] = tiff(pack_12_bits(TWELVE), 12), grey(TWELVE / 4095 * 255)
    files["8-in-16-bit.png"] = encode(GREY.astype(np.uint16), "PNG"), grey(GREY)
    files["12-bit.pgm"] = b"P5 12 8 4095\n" + TWELVE.astype(">u2").tobytes(), grey(TWELVE / 4095 * 255)
    files["16-bit.ppm"] = b"P6 12 8 65535\n" + colours.tobytes(), RGB
    files["32-bit.tiff"] = encode(WORDS.astype(np.int32), "TIFF"), grey(WORDS / 257)
    files["32-bit-too-large.tiff"] = encode(WORDS.astype(np.int32) * 9, "TIFF"), "corrupt"
    files["float-0-1.tiff"] = encode((GREY / 255).astype(np.float32), "TIFF"), grey(GREY)
    files["float-0-255.tiff"] = encode(GREY.astype(np.float32), "TIFF"), grey(GREY)
    files["float-0-65535.tiff"] = encode(WORDS.astype(np.float32), "TIFF"), grey(WORDS / 257)
    files["float-negative.tiff"] = encode(GREY.astype(np.float32) - 128, "TIFF"), "corrupt"
    files["float-nan.tiff"] = encode(np.where(GREY > 200, np.nan, GREY).astype(np.float32), "TIFF"), "corrupt"
    # Colours
    red = Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0))
    files["cmyk.jpg"] = encode(red, "JPEG", quality=100), flat(255, 0, 0)
    files["cmyk.tiff"] = encode(red, "TIFF"), flat(255, 0, 0)
    # Written as 155, 128, 128, 200 (Adobe inverts CMYK), then said to be YCCK, where a luma of 155 without chroma
    # stands for the complement, 100 of 255 parts of light, of which the black lets 200 through
    ycck = encode(Image.new("CMYK", (WIDTH, HEIGHT), (100, 127, 127, 55)), "JPEG", quality=100)
    place = ycck.index(b"Adobe") + 11
    files["ycck.jpg"] = ycck[:place] + b"\2" + ycck[place + 1 :], grey(np.full((HEIGHT, WIDTH), 100 * 200 / 255))
    files["lab.tiff"] = encode(Image.new("LAB", (WIDTH, HEIGHT), (255, 128, 128)), "TIFF"), flat(255, 255, 255)
    ycbcr = encode(Image.new("YCbCr", (WIDTH, HEIGHT), (76, 85, 255)), "TIFF")
    files["ycbcr.tiff"] = ycbcr, flat(254, 0, 0) if PILLOW_READS_YCBCR else "truncated"
    # Formats
    frames = {"save_all": True, "append_images": [Image.fromarray(RGB[::-1].copy())]}
    files["animated.webp"] = encode(RGB, "WEBP", lossless=True, **frames), RGB
    files["animated.png"] = encode(RGB, "PNG", **frames), RGB
    files["pages.tiff"] = encode(RGB, "TIFF", **frames), RGB
    other = by_index.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    files["animated.gif"] = encode(by_index, "GIF", save_all=True, append_images=[other], transparency=1), index_shown
    files["mpo.jpg"] = encode(flat(50, 90, 130), "MPO", **frames), flat(50, 90, 130)
    files["progressive.jpg"] = encode(flat(50, 90, 130), "JPEG", progressive=True), flat(50, 90, 130)
    files["a-jpeg.png"] = encode(flat(50, 90, 130), "JPEG"), flat(50, 90, 130)
    for name in ("bmp", "pcx", "sgi", "qoi"):
        files[f"colours.{name}"] = encode(RGB, name.upper()), RGB
    files["colours.jp2"] = encode(RGB, "JPEG2000"), RGB
    files["colours.avif"] = encode(flat(50, 90, 130), "AVIF", quality=100), flat(50, 90, 130)
    # Shapes
    files["pixel.png"] = encode(RGB[:1, :1], "PNG"), RGB[:1, :1]
    files["panorama.png"] = encode(flat(1, 2, 3, height=4, width=80), "PNG"), flat(1, 2, 3, height=4, width=80)
    files["receipt.png"] = encode(flat(1, 2, 3, height=100, width=1), "PNG"), flat(1, 2, 3, height=100, width=1)
    files["line.png"] = encode(flat(1, 2, 3, height=101, width=1), "PNG"), "extreme_shape"
    files["wide.png"] = encode(flat(1, 2, 3, height=1, width=3000), "PNG"), "extreme_shape"
    files["tall.jpg"] = encode(flat(1, 2, 3, height=3000, width=1), "JPEG"), "extreme_shape"
    files["long-side.png"] = encode(flat(1, 2, 3, height=90, width=9000), "PNG"), flat(1, 2, 3, height=45, width=4500)
    files["bomb.png"] = png(bits, 1, 0, size=(30_000, 30_000)), "decompression_bomb"
    files["small-bomb.png"] = png(bits, 1, 0, size=(10_000, 10_000)), "decompression_bomb"
    # No pictures, or not all of one
    noise = encode(_RANDOM.integers(0, 256, (40, 50, 3), dtype=np.uint8), "JPEG")
    files["truncated.jpg"] = noise[:-300], "truncated"
    files["truncated.png"] = encode(RGB, "PNG")[:-60], "truncated"
    files["damaged.png"] = encode(RGB, "PNG")[:60] + bytes(40) + encode(RGB, "PNG")[100:], "corrupt"
    files["empty.jpg"] = b"", "zero_sized"
    files["text.jpg"] = b"<html>404 Not Found</html>", "corrupt"
    files["postscript.jpg"] = encode(RGB, "EPS"), "corrupt"
    files["document.jpg"] = encode(RGB, "PDF"), "corrupt"
    files["drawing.jpg"] = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "corrupt"
    files["bitmap.jpg"] = encode(Image.fromarray(GREY > 127), "XBM"), "corrupt"
    files["bytes.jpg"] = bytes(range(256)), "corrupt"
    return files
