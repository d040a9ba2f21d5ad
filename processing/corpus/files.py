"""
Rows of JSON, JSON Lines and webdataset tars, one after the other. They are read here, not by datasets, because a
corpus of millions has rows that no schema fits, and these must be reported, not end the run.
"""

import gzip
import json
import logging
import lzma
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, BinaryIO

import fsspec

from .faults import Fault
from .turns import is_absent


logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = ("jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm", "pgm")
CAPTION_EXTENSIONS = ("txt", "caption", "text")
# What lies beside pictures and is none: if a sample has only other files, its picture is of a kind that is not known
OTHER_EXTENSIONS = (*CAPTION_EXTENSIONS, "json", "cls", "id", "index", "url", "npy", "npz", "pth", "pt", "pyd", "cap")

# In place of the content of a file that comes twice, or is a link; compared by identity
TWICE, LINK = b"twice", b"link"
# A record's own lone half of a character, which ijson would replace without a word
LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)

Row = dict[str, Any] | Fault
BROKEN = (ValueError, RecursionError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, tarfile.ReadError)


def read_json(file: str) -> Iterator[Row]:
    """Rows of a JSON array or of JSON Lines; which of the two it is shows in the first character."""
    row = 0
    try:
        with fsspec.open(file, "rb", compression="infer") as stream:
            first = stream.read(1)
            while first and (first.isspace() or first in b"\xef\xbb\xbf"):
                first = stream.read(1)
        with fsspec.open(file, "rb", compression="infer") as stream:
            records = _read_array(stream, file) if first == b"[" else _read_lines(stream)
            for row, record in enumerate(records, start=1):  # noqa: B007
                is_row = isinstance(record, dict | Fault)
                yield record if is_row else Fault("malformed_record", f"The row is {record!r}, no object.")
    except BROKEN as error:
        yield Fault("broken_shard", f"Nothing after the first {row} rows of {file} can be read: {error}")


def _read_lines(stream: BinaryIO) -> Iterator[Any]:
    for line in stream:
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Fault("malformed_record", f"The line is no JSON: {error}")


class _HalfCharacter(ValueError):
    """There is one in a stream, which ijson would replace."""


def _read_array(stream: BinaryIO, file: str) -> Iterator[Any]:
    row = 0
    try:
        import ijson
    except ModuleNotFoundError:
        logger.warning(f"{file} is read into memory as a whole; row by row with `pip install 'aligngpt[data]'`.")
        yield from _read_whole_array(file)
        return
    try:
        for row, record in enumerate(ijson.items(_Watched(stream), "item", use_float=True), start=1):  # noqa: B007
            yield record
    except (ijson.JSONError, _HalfCharacter):
        # Python writes and reads what the standard does not know, NaN and half characters: with the whole in memory
        yield from islice(_read_whole_array(file), row, None)


def _read_whole_array(file: str) -> Iterator[Any]:
    with fsspec.open(file, "rt", encoding="utf-8-sig", compression="infer") as text:
        yield from json.load(text)


class _Watched:
    """A stream that ends with an error before a lone half of a character, so that none is replaced."""

    HELD = 12  # bytes that stay back, so that what follows an escape is seen with it

    def __init__(self, stream: BinaryIO):
        self.stream, self.before, self.held = stream, b"", b""

    def read(self, size: int = -1) -> bytes:
        if size == 0:
            return b""
        given = b""
        while not given and (chunk := self.stream.read(size)) + self.held:
            data = self.held + chunk
            end = max(0, len(data) - self.HELD) if chunk else len(data)
            start = len(self.before)
            for found in LONE_SURROGATE.finditer(self.before + data, start):
                if found.start() < start + end:
                    raise _HalfCharacter
            given, self.held = data[:end], data[end:]
            self.before = (self.before + given)[-6:]
        return given


def _open_tar(stream: BinaryIO) -> tarfile.TarFile:
    return tarfile.open(fileobj=stream, mode="r|*", tarinfo=_StrictTarInfo)


class _StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a broken header for the end of the file, and the rest would be lost without a word."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # the block of zeros that ends a tar
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"a header is broken: {error}") from error


def read_tar(file: str, columns: Sequence[str] = ()) -> Iterator[Row]:
    """
    Rows of a webdataset tar: neighbouring files with one name up to its first dot are one sample. Its images and its
    caption are told by their extensions. Files whose extensions are among `columns` (`cap`, `outputs.txt`) are read as
    fields of that name; of all others only the names become fields, so that messages can tell them.
    """
    sample, files = None, {}
    try:
        with fsspec.open(file, "rb") as stream, _open_tar(stream) as archive:
            for member in archive:
                if (name := _sample_of(member)) is None:
                    continue
                if name[0] != sample and files:
                    yield _sample_record(sample, files, columns)
                    files = {}
                sample = name[0]
                content = archive.extractfile(member).read() if member.isfile() else LINK
                files[name[1]] = TWICE if name[1] in files else content
        if files:
            yield _sample_record(sample, files, columns)
    except BROKEN as error:
        # The sample at hand is cut off with the rest
        yield Fault("broken_shard", f"Nothing from sample {sample} of {file} on can be read: {error}")


def _sample_of(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """A member's sample and extension; None for folders and for what a file system left behind (`._x`)."""
    folder, base = posixpath.split(member.name)
    stem, _, extension = base.partition(".")
    return None if member.isdir() or not stem else (posixpath.join(folder, stem), extension.lower())


def _sample_record(sample: str, files: dict[str, bytes], columns: Sequence[str]) -> Row:
    if twice := [name for name, content in files.items() if content is TWICE]:
        return Fault("malformed_record", f"Sample {sample} has several files {sample}.{twice[0]}.", sample)
    if links := [name for name, content in files.items() if content is LINK]:
        return Fault("missing", f"{sample}.{links[0]} is a link or a device, which a stream cannot follow.", sample)
    try:
        record = {**dict.fromkeys(files), "id": sample, **json.loads(files.get("json", b"{}"))}
        record |= {"caption": files[name].decode("utf-8-sig") for name in CAPTION_EXTENSIONS if name in files}
        for name in files.keys() & columns:
            is_image = name.rsplit(".", 1)[-1] in IMAGE_EXTENSIONS
            record[name] = _image(sample, name, files) if is_image else files[name].decode("utf-8-sig")
    except (ValueError, TypeError, RecursionError) as error:
        return Fault("malformed_record", f"Sample {sample}: {error}", sample)
    names = [name for name in files if name.rsplit(".", 1)[-1] in IMAGE_EXTENSIONS]
    # `x.seg.png` beside `x.jpg` is a mask or the like
    names = [name for name in names if name in IMAGE_EXTENSIONS] or names
    is_told = any(not is_absent(record.pop(name, None)) for name in ("image", "images"))  # a path says where it was
    if not names and (is_told or not all(name.rsplit(".", 1)[-1] in OTHER_EXTENSIONS for name in files)):
        return Fault("missing", f"Sample {sample} has no picture of a known kind, but {sorted(files)}.", sample)
    return record | {"images": [_image(sample, name, files) for name in names]}


def _image(sample: str, name: str, files: dict[str, bytes]) -> dict[str, Any]:
    return {"bytes": files[name], "path": f"{sample}.{name}"}


def count_tar(file: str) -> int | None:
    """Samples of a local tar; None if it is broken."""
    try:
        with tarfile.open(file) as archive:
            names = [name[0] for member in archive if (name := _sample_of(member)) is not None]
    except (*BROKEN, OSError):
        return None
    return sum(1 for index, name in enumerate(names) if index == 0 or names[index - 1] != name)
