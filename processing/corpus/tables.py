"""
Tables of pairs - parquet, CSV and Arrow files, datasets - row by row, with images left encoded, to be opened once,
where faults are caught. A file that is broken costs the rest of its rows, a picture its row.
"""

import os
import posixpath
from collections.abc import Iterator
from glob import escape
from typing import Any

import datasets
import fsspec
import pyarrow
import pyarrow.parquet

from .faults import Fault
from .files import Row


# pandas' and Arrow's complaints about a file are ValueErrors, or of these
BROKEN_TABLE = (ValueError, OSError, EOFError, RuntimeError, StopIteration, pyarrow.ArrowException)


def read_table(file: str, file_format: str, name: str, start: int) -> Iterator[Row]:
    """Rows of a file from one on; `name` is what faults call it."""
    try:
        if file_format == "parquet" and os.path.isfile(file) and pyarrow.parquet.read_metadata(file).num_rows == 0:
            return  # which datasets cannot stream
        dataset = with_encoded_images(load_table(file, file_format))[0]
    except BROKEN_TABLE as error:
        if not os.path.isfile(file):
            raise  # more likely the network
        yield Fault("broken_shard", f"{name} cannot be read: {error}")
        return
    yield from read_dataset(dataset, name, start, os.path.isfile(file))


def load_table(file: str, file_format: str) -> datasets.IterableDataset:
    """A file as datasets streams it."""
    file = escape(os.path.abspath(file)) if os.path.isfile(file) else file  # datasets takes it for a glob
    return datasets.load_dataset(file_format, data_files=[file], split="train", streaming=True)


def may_hold_images(file: str, file_format: str) -> bool:
    """Whether a file's rows may have images as bytes; of one that cannot be read, which is told later, True."""
    try:
        if file_format == "parquet" and os.path.isfile(file):  # a corpus may have thousands
            return any(map(_holds_bytes, pyarrow.parquet.read_schema(file).types))
        return with_encoded_images(load_table(file, file_format))[1]
    except BROKEN_TABLE:
        return True


def _holds_bytes(kind: pyarrow.DataType) -> bool:
    inner = [kind.field(index).type for index in range(kind.num_fields)]
    return "binary" in str(kind) if not inner else any(map(_holds_bytes, inner))


def read_dataset(
    dataset: datasets.Dataset | datasets.IterableDataset, name: str, start: int, is_local: bool = False
) -> Iterator[Row]:
    """Rows of a dataset from one on. If it is a local file, any error is the file's; else only Arrow's are."""
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
        if (undecoded := _undecoded(feature)) != feature:
            dataset = dataset.cast_column(column, undecoded)
        embedded |= _may_hold_images(feature)
    return dataset, embedded


def _may_hold_images(feature: Any) -> bool:
    """Whether values of a feature are images, or have images inside: in lists, in the parts of messages."""
    if isinstance(feature, datasets.List | datasets.LargeList):
        return _may_hold_images(feature.feature)
    if isinstance(feature, dict):
        return any(_may_hold_images(inner) for inner in feature.values())
    return isinstance(feature, datasets.Image) or (isinstance(feature, datasets.Value) and "binary" in feature.dtype)


def _undecoded(feature: Any) -> Any:
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, datasets.List | datasets.LargeList):
        return type(feature)(_undecoded(feature.feature))
    if isinstance(feature, dict):
        return {name: _undecoded(inner) for name, inner in feature.items()}
    return feature


def with_bytes(value: Any) -> Any:
    """An image folder's images are paths that datasets found, not words of the corpus: they are read here."""
    if isinstance(value, list):
        return [with_bytes(item) for item in value]
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        if value["bytes"] is None and value["path"]:
            with fsspec.open(value["path"], "rb") as stream:
                return {"bytes": stream.read(), "path": posixpath.basename(value["path"])}
        return value
    return {key: with_bytes(inner) for key, inner in value.items()} if isinstance(value, dict) else value
