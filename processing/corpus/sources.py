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
import fsspec
import pyarrow
import pyarrow.parquet
from datasets.data_files import get_data_patterns

from .faults import Fault
from .files import Row, count_tar, read_json, read_tar


FORMATS = {"json": "json", "jsonl": "json", "ndjson": "json", "tar": "tar"}
FORMATS |= {name: name for name in ("parquet", "csv", "arrow")}
# pandas' and Arrow's complaints about a file are ValueErrors, or of these
BROKEN_TABLE = (ValueError, OSError, EOFError, RuntimeError, StopIteration, pyarrow.ArrowException)
FILE_READERS = {"json": read_json, "tar": read_tar}


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
            `aligngpt.processing.corpus.records` expects.

    Raises:
        FileNotFoundError: if nothing matches.
        ValueError: if a file's format is unknown, or the split does not exist.
    """
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
        shards = _file_shards(files, streaming)
    else:
        shards = _open_with_datasets(data, split, config_name, revision, streaming)
    if not shards:
        raise FileNotFoundError(f"There is no file, folder or dataset {data!r}.")
    names = {"image": image_column, "caption": text_column}
    names = {name: column for name, column in names.items() if column is not None}
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
    data: str, split: str, config_name: str | None, revision: str | None, streaming: bool
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
        return _file_shards(files, streaming)
    # An image folder or the like, where files are not shards
    options |= {"decode_num_threads": 0} if hasattr(builder.config, "decode_num_threads") else {}
    dataset = datasets.load_dataset(data, config_name, split=split, streaming=True, **options)
    return [_dataset_shard(dataset, "dataset", builder.hash or "", paths_by_datasets=True)]


def _rename_columns(shard: Shard, names: dict[str, str]) -> Shard:
    hidden = {"image": ("image", "images"), "caption": ("messages", "conversations", "caption", "text")}
    hidden = {column for name in names for column in hidden[name]}

    def read(start: int) -> Iterator[Row]:
        for row in shard.read(start):
            if isinstance(row, Fault):
                yield row
            else:
                kept = {key: value for key, value in row.items() if key not in hidden}
                yield kept | {name: row.get(column) for name, column in names.items()}

    return replace(shard, read=read)


def _extension(name: str) -> str:
    name = name.lower().rsplit("/", 1)[-1]
    for compression in (".gz", ".zst", ".bz2", ".xz"):
        name = name.removesuffix(compression)
    return "tar" if name.endswith(".tgz") else name.rpartition(".")[2] * ("." in name)


def _file_shards(files: list[str], streaming: bool) -> list[Shard]:
    stem = posixpath.dirname(os.path.commonprefix([*files, *files[:1]]))
    unknown = [file for file in files if _extension(file) not in FORMATS]
    if unknown:
        raise ValueError(f"The format of {unknown[0]} is unknown; known are {sorted(FORMATS)}.")
    embedded = False
    for table in (file for file in files if FORMATS[_extension(file)] not in FILE_READERS):
        try:
            embedded = with_encoded_images(_load_table(table))[1]
            break  # one look for all of them: a corpus may have thousands
        except BROKEN_TABLE:  # told when it is read
            embedded = True
    count_tars = len(files) <= 200  # they have to be gone through to be counted
    return [_file_shard(file, file[len(stem) :].lstrip("/"), streaming, embedded, count_tars) for file in files]


def _file_shard(file: str, name: str, streaming: bool, embedded: bool, count_tars: bool) -> Shard:
    file_format, is_local = FORMATS[_extension(file)], os.path.isfile(file)

    def read(start: int) -> Iterator[Row]:
        # Now, not on opening: no process waits for the files of another
        path = file if streaming else datasets.DownloadManager().download(file)
        if file_format in FILE_READERS:
            yield from islice(FILE_READERS[file_format](path), start, None)
        else:
            yield from _read_table(path, file_format, name, start)

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
    has_images = file_format == "tar" or (embedded and file_format != "json")
    return Shard(name, read, has_images, fingerprint, count_rows, file)


def _fingerprint(file: str) -> str:
    """By what is in it, not by time: a copy on another machine is the same corpus. Not all of it: it may be large."""
    size = os.path.getsize(file)
    with open(file, "rb") as stream:
        ends = stream.read(65536)
        stream.seek(max(0, size - 65536))
        ends += stream.read()
    return f"{size}-{hashlib.sha256(ends).hexdigest()[:16]}"


def _read_table(file: str, file_format: str, name: str, start: int) -> Iterator[Row]:
    try:
        if file_format == "parquet" and os.path.isfile(file) and pyarrow.parquet.read_metadata(file).num_rows == 0:
            return  # which datasets cannot stream
        dataset = with_encoded_images(_load_table(file, file_format))[0]
    except BROKEN_TABLE as error:
        if not os.path.isfile(file):
            raise  # more likely the network
        yield Fault("broken_shard", f"{name} cannot be read: {error}")
        return
    yield from _read_dataset(dataset, name, start, os.path.isfile(file))


def _load_table(file: str, file_format: str | None = None) -> datasets.IterableDataset:
    file_format = file_format or FORMATS[_extension(file)]
    file = escape(os.path.abspath(file)) if os.path.isfile(file) else file  # datasets takes it for a glob
    return datasets.load_dataset(file_format, data_files=[file], split="train", streaming=True)


def _dataset_shard(
    dataset: datasets.Dataset | datasets.IterableDataset,
    name: str,
    fingerprint: str = "",
    count_rows: Callable[[], int | None] = lambda: None,
    paths_by_datasets: bool = False,
) -> Shard:
    dataset, embedded = with_encoded_images(dataset)

    def read(start: int) -> Iterator[Row]:
        for row in _read_dataset(dataset, name, start):
            try:
                is_path = paths_by_datasets and isinstance(row, dict)
                yield {key: _with_bytes(row[key]) for key in row} if is_path else row
            except OSError as error:
                yield Fault("missing", f"An image of {name} cannot be read: {error}")

    return Shard(name, read, embedded, fingerprint, count_rows)


def _read_dataset(
    dataset: datasets.Dataset | datasets.IterableDataset, name: str, start: int, is_local: bool = False
) -> Iterator[Row]:
    broken = BROKEN_TABLE if is_local else (pyarrow.ArrowInvalid,)
    try:
        yield from dataset.skip(start)
    except broken as error:
        yield Fault("broken_shard", f"The rest of {name} cannot be read: {error}")


def with_encoded_images(dataset: Any) -> tuple[Any, bool]:
    """The dataset with its images left encoded, to be decoded once, where faults are caught; and if it has any."""
    try:
        features = dataset.features or dataset._resolve_features().features
    except pyarrow.ArrowInvalid:  # of pictures that a function of the user's made
        features = None
    if features is None:
        return dataset, True
    embedded = False
    for column, feature in features.items():
        if (undecoded := _undecoded(feature)) is not feature:
            dataset = dataset.cast_column(column, undecoded)
        embedded |= _may_hold_images(feature)
    return dataset, embedded


def _may_hold_images(feature: Any) -> bool:
    if isinstance(feature, datasets.List):
        return _may_hold_images(feature.feature)
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, datasets.Image) or (
        isinstance(feature, datasets.Value) and feature.dtype.startswith(("binary", "large_binary"))
    )


def _undecoded(feature: Any) -> Any:
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, datasets.List) and (inner := _undecoded(feature.feature)) is not feature.feature:
        return datasets.List(inner)
    return feature


def _with_bytes(value: Any) -> Any:
    """An image folder's images are paths that datasets found, not words of the corpus: they are read here."""
    if isinstance(value, list):
        return [_with_bytes(item) for item in value]
    if isinstance(value, dict) and value.keys() == {"bytes", "path"} and value["bytes"] is None and value["path"]:
        with fsspec.open(value["path"], "rb") as stream:
            return {"bytes": stream.read(), "path": posixpath.basename(value["path"])}
    return value
