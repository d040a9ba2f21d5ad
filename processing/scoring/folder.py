"""
The folder in which a corpus is scored: parquet parts that are there whole or not at all, whoever is killed when.

    run.json                           what the scores depend on
    shard-00000-part-00000.parquet     the scored rows of a part: consecutive rows of a shard
    shard-00000-part-00000.json        its counts and faults; written last, so it says that the part is whole
    shard-00000.json                   how many rows the shard has, once somebody read to its end
    faults.jsonl, score_report.json    all parts' together, once all are there
"""

import json
import os
import re
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from aligngpt.processing.atomic_output import replacing, write_json


def rows_per_group(schema: pa.Schema) -> int:
    """Rows of a parquet row group: few where they hold images, for one above 2 GB cannot be read again."""
    return 64 if pa.types.is_struct(schema.field("image").type) else 8192


class ScoreFolder:
    """
    A folder of scores; see above for its files.

    Args:
        path (`str`): the folder, which `claim` makes.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    @cached_property
    def run(self) -> dict[str, Any]:
        """
        What was claimed.

        Raises:
            FileNotFoundError: if this is no folder of scores.
        """
        if not (self.path / "run.json").is_file():
            raise FileNotFoundError(f"{self.path} is no folder that `aligngpt score` wrote: it has no run.json.")
        return json.loads((self.path / "run.json").read_text(encoding="utf-8"))

    def parts_of(self, rows: int) -> range:
        """The numbers of the parts of a shard with so many rows; all but the last have `rows_per_part` rows."""
        return range(-(-rows // self.run["rows_per_part"]))

    def claim(self, run: dict[str, Any]) -> None:
        """
        Starts the run or continues it.

        Raises:
            ValueError: if the folder belongs to a run that differs in what scores depend on; the message says in what.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if (self.path / "run.json").is_file():
            compared = (run | self.run).keys() - {"beside"}
            if different := sorted(name for name in compared if run.get(name) != self.run.get(name)):
                was = {name: self.run.get(name) for name in different if name != "shards"}
                raise ValueError(
                    f"{self.path} holds the scores of another run: it differs in {different}, and had {was}. "
                    "Choose another output folder, or continue with the same arguments and data."
                )
        else:
            write_json(self.path / "run.json", run)  # the same by all processes that come at once

    def parts(self) -> set[tuple[int, int]]:
        """The (shard, part) that are whole."""
        names = (re.fullmatch(r"shard-(\d+)-part-(\d+)\.json", entry.name) for entry in os.scandir(self.path))
        return {(int(name[1]), int(name[2])) for name in names if name}

    def rows_of_shard(self, shard: int) -> int | None:
        """How many rows a shard has; None if nobody has read to its end yet."""
        path = self.path / f"shard-{shard:05d}.json"
        return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else None

    def end_shard(self, shard: int, rows: int) -> None:
        """Notes that a shard ends after so many rows."""
        write_json(self.path / f"shard-{shard:05d}.json", {"rows": rows})

    def parts_to_retry(self, kinds: tuple[str, ...]) -> set[tuple[int, int]]:
        """The parts with a fault of one of these kinds."""
        counts = {
            part: self.part_file(*part).with_suffix(".json").read_text(encoding="utf-8") for part in self.parts()
        }
        faults = {part: {fault["kind"] for fault in json.loads(text)["faults"]} for part, text in counts.items()}
        return {part for part, found in faults.items() if found.intersection(kinds)}

    def write_part(self, shard: int, part: int, table: pa.Table, counts: dict[str, Any]) -> None:
        """Writes a part: its rows, then its counts and faults."""
        rows = rows_per_group(table.schema)
        with replacing(self.part_file(shard, part)) as temporary:
            pq.write_table(table, temporary, row_group_size=rows)
        write_json(self.part_file(shard, part).with_suffix(".json"), counts)

    def part_file(self, shard: int, part: int) -> Path:
        """The parquet file of a part."""
        return self.path / f"shard-{shard:05d}-part-{part:05d}.parquet"

    def all_parts(self) -> list[tuple[int, int]] | None:
        """Every (shard, part) of the corpus in order, None if one is missing."""
        expected = []
        for shard in range(len(self.run["shards"])):
            if (rows := self.rows_of_shard(shard)) is None:
                return None
            expected += [(shard, part) for part in self.parts_of(rows)]
        return expected if self.parts().issuperset(expected) else None

    def write_report(self) -> dict[str, Any] | None:
        """
        Writes `faults.jsonl` and `score_report.json` if all parts are there, and returns the report; else None.

        Raises:
            RuntimeError: if the counts do not add up.
        """
        if (parts := self.all_parts()) is None:
            return None
        total, faults, converted = Counter(), Counter(), Counter()
        with replacing(self.path / "faults.jsonl") as temporary, open(temporary, "w", encoding="utf-8") as file:
            for part in parts:
                counts = json.loads(self.part_file(*part).with_suffix(".json").read_text(encoding="utf-8"))
                for fault in counts.pop("faults"):
                    faults[fault["kind"]] += 1
                    file.write(json.dumps(fault) + "\n")
                converted.update(counts.pop("converted"))
                total.update(counts)
        report = {name: total[name] for name in ("rows", "scored", "text_only")} | {
            "listed": faults.total(),
            "faults": dict(faults.most_common()),
            "converted": dict(converted.most_common()),
            "truncated_captions": total["truncated_captions"],
            **{name: self.run[name] for name in ("scorer", "scorer_revision", "dtype")},
        }
        rows = sum(self.rows_of_shard(shard) for shard in range(len(self.run["shards"])))
        if not rows == report["rows"] == report["scored"] + report["text_only"] + report["listed"]:
            raise RuntimeError(f"The shards have {rows} rows, which is not what the parts count: {report}")
        write_json(self.path / "score_report.json", report)
        for left_over in self.path.glob(".shard-*"):  # by processes that were killed
            left_over.unlink(missing_ok=True)
        return report
