"""What comes out of cutting a corpus into levels: the data, in two forms, and what is in each level."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aligngpt.processing.corpus.samples import PLACEHOLDER
from aligngpt.processing.scoring.folder import rows_per_group


FILE_BYTES = 500_000_000  # of a table in memory; a file is smaller


def write_parquet(tables: Iterable[pa.Table], folder: Path) -> None:
    """Writes `data-00000.parquet` and so on, of some hundred megabytes each."""
    writer, number, size = None, 0, 0
    try:
        for table in tables:
            if writer is None:
                writer = pq.ParquetWriter(folder / f"data-{number:05d}.parquet", table.schema)
            writer.write_table(table, row_group_size=rows_per_group(table.schema))
            size += table.nbytes
            if size > FILE_BYTES:
                writer.close()
                writer, number, size = None, number + 1, 0
    finally:
        if writer is not None:
            writer.close()


def write_llava_json(tables: Iterable[pa.Table], folder: Path) -> None:
    """
    Writes `pairs.json`, a list of LLaVA's records, with the level also under the authors' name for it, `similarity`.

    Raises:
        ValueError: if images are bytes: the form has paths.
    """
    with open(folder / "pairs.json", "w", encoding="utf-8") as file:
        separator = "[\n"
        for table in tables:
            for row in table.to_pylist():
                if isinstance(row["image"], dict):
                    if row["image"]["bytes"] is not None or row["image"]["path"] is None:
                        raise ValueError("LLaVA's JSON has paths of images, these are bytes: use --to parquet.")
                    row["image"] = row["image"]["path"]
                file.write(separator + json.dumps(_llava_record(row), ensure_ascii=False))
                separator = ",\n"
        file.write("\n]\n" if separator == ",\n" else "[]\n")


def _llava_record(row: dict[str, Any]) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    messages = row["messages"] or [{"role": "user", "content": ""}, {"role": "assistant", "content": row["caption"]}]
    turns = [{"from": names[message["role"]], "value": message["content"]} for message in messages]
    for turn, message in zip(turns, messages, strict=True):
        if message.get("weight") is not None:
            turn["weight"] = message["weight"]
    if turns[0]["from"] == "gpt":  # a first turn by the assistant would be left out by those who read this form
        turns.insert(0, {"from": "human", "value": ""})
    record = {"id": row["id"], "conversations": turns}
    if row["image"] is not None:
        if not any(PLACEHOLDER in turn["value"] for turn in turns if turn["from"] == "human"):
            first = next((turn for turn in turns if turn["from"] == "human"), None)
            if first is None:
                turns.insert(0, first := {"from": "human", "value": ""})
            first["value"] = f"{PLACEHOLDER}\n{first['value']}" if first["value"] else PLACEHOLDER
        record |= {"image": row["image"], "similarity": row["alignment_level"]}
        record |= {name: row[name] for name in ("alignment_score", "alignment_level")}
    return record


class LevelSummary:
    """
    What is in each level: how many pairs, their scores, and some of them by chance.

    Args:
        num_levels (`int`): N.
        samples_per_level (`int`): pairs kept of each level.
    """

    def __init__(self, num_levels: int, samples_per_level: int):
        self.samples_per_level = samples_per_level
        self.counts = np.zeros(num_levels, dtype=np.int64)
        self.sums = np.zeros(num_levels)
        self.lowest, self.highest = np.full(num_levels, np.inf), np.full(num_levels, -np.inf)
        self._samples: list[list[tuple[float, dict[str, Any]]]] = [[] for _ in range(num_levels)]
        self._generator = np.random.default_rng(0)

    def watch(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The tables as they are, looked at in passing."""
        for table in tables:
            rows = np.flatnonzero(~np.asarray(table["alignment_level"].is_null()))
            levels = table["alignment_level"].drop_null().to_numpy()
            scores = table["alignment_score"].take(pa.array(rows)).to_numpy().astype(np.float64)  # null: NaN
            self.counts += np.bincount(levels, minlength=len(self.counts))
            self.sums += np.bincount(levels, weights=scores, minlength=len(self.counts))
            np.fmin.at(self.lowest, levels, scores)
            np.fmax.at(self.highest, levels, scores)
            self._sample(table, rows, levels)
            yield table

    def _sample(self, table: pa.Table, rows: np.ndarray, levels: np.ndarray) -> None:
        """Keeps the pairs that drew the lowest numbers of all so far."""
        numbers = self._generator.random(len(rows))
        for level, kept in enumerate(self._samples):
            here = np.flatnonzero(levels == level)
            here = here[np.argsort(numbers[here])][: self.samples_per_level]
            worst = kept[-1][0] if len(kept) == self.samples_per_level and kept else np.inf
            new = [(numbers[i], table.slice(int(rows[i]), 1).to_pylist()[0]) for i in here if numbers[i] < worst]
            self._samples[level] = sorted(kept + new, key=lambda pair: pair[0])[: self.samples_per_level]

    def rows(self) -> Iterator[tuple[int, float, float, float]]:
        """Of each level: the number of pairs, their lowest, mean and highest score (not finite: none)."""
        for level, count in enumerate(self.counts):
            mean = self.sums[level] / count if count else np.nan
            yield int(count), self.lowest[level], mean, self.highest[level]

    def samples(self) -> list[list[dict[str, Any]]]:
        """Of each level, some rows."""
        return [[row for _, row in kept] for kept in self._samples]
