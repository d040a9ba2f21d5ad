"""
Corpora of image-text pairs as shards whose rows are read one after the other: LLaVA's JSON or JSON Lines, webdataset
tars, and whatever datasets loads.
"""

import hashlib
import os
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from glob import escape, glob, has_magic
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
from datasets.data_files import get_data_patterns

from .faults import Fault
from .files import Row, count_tar, read_json, read_tar
from .tables import BROKEN_TABLE, may_hold_images, read_dataset, read_table, with_bytes, with_encoded_images


FORMATS = {"json": "json", "jsonl": "json", "ndjson": "json", "tar": "tar"}
FORMATS |= {name: name for name in ("parquet", "csv", "arrow")}
ROW_FORMATS = ("json", "tar")  # read by aligngpt.processing.corpus.files, not by datasets


@dataclass(frozen=True)
class Shard:
    """
    A part of a corpus with rows in an order that does not change.

    Args:
        name (`str`): unique in the corpus; with a row's number it is the key of a pair, for ids need not be unique.
        read (`Callable[[int], Iterator[Row]]`): the rows from one on; a row that cannot be read is a `Fault`.
        embedded_images (`bool`): whether images are bytes in the rows; else they are paths.
        fingerprint (`str`): changes if the shard does: a local file's size and a hash of its
            ends, or the dataset's own.
        count_rows (`Callable[[], int | None]`): how many rows there are, if that is quickly told.
        file (`str`): its path or URL, if it is one file.
    """

    name: str
    read: Callable[[int], Iterator[Row]]
    embedded_images: bool
    fingerprint: str = ""
    count_rows: Callable[[], int | None] = lambda: None
    file: str = ""


def open_corpus(
    data: str | datasets.Dataset | datasets.IterableDataset,
    split: str = "train",
    config_name: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    image_column: str | None = None,
    text_column: str | None = None,
) -> list[Shard]:
    """
    The shards of a corpus, one a file where it has files.

    Args:
        data (`str`, `Dataset` or `IterableDataset`): a file or glob (JSON, JSON Lines, tar, parquet, CSV, Arrow; plain
            or at a URL that fsspec opens), a local folder or Hub id that `datasets.load_dataset` takes, a folder
            written by `save_to_disk`, or a dataset.
        split, config_name, revision (`str`, *optional*): as in `datasets.load_dataset`.
        streaming (`bool`): read remote files as they come, instead of downloading them into the cache first.
        image_column, text_column (`str`, *optional*): what is called otherwise than
            `aligngpt.processing.corpus.records` expects; of a tar, the extension of the files.

    Raises:
        FileNotFoundError: if nothing matches.
        ValueError: if a file's format is unknown, or the split does not exist.
    """
    names = {"image": image_column, "caption": text_column}
    names = {name: column.removeprefix(".") for name, column in names.items() if column is not None}
    columns = tuple(names.values())
    if isinstance(data, datasets.Dataset):
        shards = [_dataset_shard(data, "dataset", getattr(data, "_fingerprint", ""), lambda: len(data))]
    elif isinstance(data, datasets.IterableDataset):
        count = data.num_shards
        shards = [_dataset_shard(data.shard(count, index), f"dataset-{index:05d}") for index in range(count)]
    elif any((Path(data) / name).is_file() for name in ("state.json", "dataset_dict.json")):
        dataset = datasets.load_from_disk(data)
        if isinstance(dataset, datasets.DatasetDict):
            if split not in dataset:
                raise ValueError(f"{data} has no split {split!r}; there are {sorted(dataset)}.")
            dataset = dataset[split]
        shards = [_dataset_shard(dataset, "dataset", dataset._fingerprint, lambda: len(dataset))]
    elif (files := _find_files(data)) is not None:
        shards = _file_shards(files, streaming, columns)
    else:
        shards = _open_with_datasets(data, split, config_name, revision, streaming, columns)
    if not shards:
        raise FileNotFoundError(f"There is no file, folder or dataset {data!r}.")
    return [_rename_columns(shard, names) for shard in shards] if names else shards


def _find_files(data: str) -> list[str] | None:
    """The files that a path, glob or URL means; None for a folder or a Hub id, which datasets knows to read."""
    if "://" in data or os.path.isfile(data):
        return [data]
    if has_magic(data) and not os.path.isdir(data):
        folder = data
        while folder != os.path.dirname(folder) and not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        return sorted(glob(escape(folder) + data[len(folder) :], recursive=True))  # a folder that is there is no glob
    means_a_file = os.path.isabs(data) or _extension(data) in FORMATS
    return [] if means_a_file and not os.path.isdir(data) else None


def _open_with_datasets(
    data: str,
    split: str,
    config_name: str | None,
    revision: str | None,
    streaming: bool,
    columns: tuple[str, ...],
) -> list[Shard]:
    options: dict[str, Any] = {"revision": revision}
    if has_magic(os.path.abspath(data)) and os.path.isdir(data):  # which datasets would take for a glob
        folder = escape(os.path.abspath(data))
        patterns = get_data_patterns(folder)
        options["data_files"] = {name: [f"{folder}/{file}" for file in files] for name, files in patterns.items()}
    builder = datasets.load_dataset_builder(data, config_name, **options)
    if split not in (known := builder.config.data_files or {}):
        raise ValueError(f"{data} has no split {split!r}; there are {sorted(map(str, known))}.")
    files = [str(file) for file in known[split]]
    if all(_extension(file) in FORMATS for file in files):
        return _file_shards(files, streaming, columns)
    # An image folder or the like, where files are not shards
    options |= {"decode_num_threads": 0} if hasattr(builder.config, "decode_num_threads") else {}
    dataset = datasets.load_dataset(data, config_name, split=split, streaming=True, **options)
    return [_dataset_shard(dataset, "dataset", builder.hash or "", paths_by_datasets=True)]


def _rename_columns(shard: Shard, names: dict[str, str]) -> Shard:
    """The shard with its columns under the names that records have; `names` are these and the columns' own."""
    hidden = {"image": ("image", "images"), "caption": ("messages", "conversations", "caption", "text")}

    def read(start: int) -> Iterator[Row]:
        for row in shard.read(start):
            yield row if isinstance(row, Fault) else _rename_row(row)

    def _rename_row(row: dict[str, Any]) -> Row:
        renamed = {key: value for key, value in row.items() if not any(key in hidden[name] for name in names)}
        for name, column in names.items():
            value = row.get(column, row.get(column.lower()))  # a tar's are told in lower case
            if name == "image" and value is None and any(row.get(other) for other in hidden["image"]):
                return Fault("missing", f"The record has no image under {column!r}; its fields are {sorted(row)}.")
            renamed[name] = value
        return renamed

    return replace(shard, read=read)


def _extension(name: str) -> str:
    name = name.lower().rsplit("/", 1)[-1]
    for compression in (".gz", ".zst", ".bz2", ".xz"):
        name = name.removesuffix(compression)
    return "tar" if name.endswith(".tgz") else name.rpartition(".")[2] * ("." in name)


def _file_shards(files: list[str], streaming: bool, columns: tuple[str, ...]) -> list[Shard]:
    stem = posixpath.dirname(os.path.commonprefix([*files, *files[:1]]))
    unknown = [file for file in files if _extension(file) not in FORMATS]
    if unknown:
        raise ValueError(f"The format of {unknown[0]} is unknown; known are {sorted(FORMATS)}.")
    count_tars = len(files) <= 200  # they have to be gone through to be counted
    return [_file_shard(file, file[len(stem) :].lstrip("/"), streaming, count_tars, columns) for file in files]


def _file_shard(file: str, name: str, streaming: bool, count_tars: bool, columns: tuple[str, ...]) -> Shard:
    file_format, is_local = FORMATS[_extension(file)], os.path.isfile(file)

    def read(start: int) -> Iterator[Row]:
        # Now, not on opening: no process waits for the files of another
        path = file if streaming else datasets.DownloadManager().download(file)
        if file_format in ROW_FORMATS:
            rows = read_tar(path, [column.lower() for column in columns]) if file_format == "tar" else read_json(path)
            yield from islice(rows, start, None)
        else:
            yield from read_table(path, file_format, name, start)

    def count_rows() -> int | None:
        if not is_local:
            return None
        if file_format == "tar":
            return count_tar(file) if count_tars else None
        if file_format == "json":
            return sum(1 for _ in read_json(file))
        try:
            return pyarrow.parquet.read_metadata(file).num_rows if file_format == "parquet" else None
        except BROKEN_TABLE:
            return None

    fingerprint = _fingerprint(file) if is_local else file
    has_images = file_format == "tar" or (file_format != "json" and may_hold_images(file, file_format))
    return Shard(name, read, has_images, fingerprint, count_rows, file)


def _fingerprint(file: str) -> str:
    """By what is in it, not by time: a copy on another machine is the same corpus. Not all of it: it may be large."""
    size = os.path.getsize(file)
    with open(file, "rb") as stream:
        ends = stream.read(65536)
        stream.seek(max(0, size - 65536))
        ends += stream.read()
    return f"{size}-{hashlib.sha256(ends).hexdigest()[:16]}"


def _dataset_shard(
    dataset: datasets.Dataset | datasets.IterableDataset,
    name: str,
    fingerprint: str = "",
    count_rows: Callable[[], int | None] = lambda: None,
    paths_by_datasets: bool = False,
) -> Shard:
    dataset, embedded = with_encoded_images(dataset)

    def read(start: int) -> Iterator[Row]:
        for row in read_dataset(dataset, name, start):
            try:
                is_path = paths_by_datasets and isinstance(row, dict)
                yield {key: with_bytes(row[key]) for key in row} if is_path else row
            except OSError as error:
                yield Fault("missing", f"An image of {name} cannot be read: {error}")

    return Shard(name, read, embedded, fingerprint, count_rows)
