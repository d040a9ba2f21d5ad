"""
The run of `aligngpt levels`: the rows are read twice, once for a histogram of their scores and once to be written with
their levels.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from aligngpt.processing.atomic_output import new_folder
from aligngpt.processing.corpus.faults import Fault
from aligngpt.processing.corpus.records import read_record
from aligngpt.processing.corpus.samples import check_single
from aligngpt.processing.corpus.sources import open_corpus
from aligngpt.processing.scoring.folder import ScoreFolder, rows_per_group
from aligngpt.processing.scoring.parts import describe_sample, output_features

from .arguments import LevelArguments
from .cuts import LevelCuts, ScoreHistogram
from .outputs import LevelSummary, write_llava_json, write_parquet


logger = logging.getLogger(__name__)

# Without it datasets would take the folder for one of pictures
CARD = """---
configs:
- config_name: default
  data_files: "{data_files}"
---

Image-text pairs with alignment levels: {cuts.count} pairs, {cuts.num_levels} levels, {cuts.rule}, scored by
{cuts.scorer} ({cuts.scorer_revision}). Written by `aligngpt levels`; the cut points are in `alignment_levels.json`.
"""


def cut_corpus(args: LevelArguments) -> tuple[LevelCuts, LevelSummary]:
    """
    Writes the data with levels; returns how they were cut, and what is in each.

    Raises:
        ValueError: if scores are missing, cannot be cut so, or come from another scorer than the cut points; if a
            given level is out of range; or if two of `apply`, `random` and given levels are asked for at once.
        FileExistsError: if the output folder is there and not empty.
    """
    if args.num_levels < 2:
        raise ValueError(f"There have to be at least two levels, not {args.num_levels}.")
    if args.apply is not None and args.random is not None:
        raise ValueError("Levels are random or cut at known points: give --apply or --random, not both.")
    with new_folder(args.output_dir) as folder:
        source = _Source(args.data)
        histogram = ScoreHistogram()
        given = 0
        for table in source.tables(["alignment_score", "alignment_level"]):
            histogram.add(_valid(table, "alignment_score"))
            given += table.num_rows - table["alignment_level"].null_count
        cuts = _choose_cuts(args, source, histogram, given)
        assign = cuts.apply
        if cuts.rule == "equal-frequency" and args.apply is None:
            assign = histogram.rank_levels(cuts.num_levels)
        summary = LevelSummary(cuts.num_levels, args.samples_per_level)
        tables = summary.watch(_with_levels(source, cuts, assign))
        tables = (_at_least(table, args.min_level) for table in tables)
        (write_llava_json if args.to == "llava-json" else write_parquet)(tables, folder)
        cuts = replace(cuts, min_level=args.min_level)
        cuts.save(folder / "alignment_levels.json")
        data_files = "pairs.json" if args.to == "llava-json" else "*.parquet"
        (folder / "README.md").write_text(CARD.format(data_files=data_files, cuts=cuts), encoding="utf-8")
        try:
            from .pictures import draw_levels, draw_samples

            draw_levels(folder / "levels.png", histogram, cuts, summary)
            draw_samples(folder / "samples.png", summary, args.image_folder or source.image_folder)
        except ModuleNotFoundError as error:
            name = (error.name or "").partition(".")[0]
            logger.warning(f"levels.png and samples.png need {name}: pip install 'aligngpt[data]'.")
        except Exception:  # hours of data are worth more than their picture
            logger.exception("The pictures could not be drawn.")
    return cuts, summary


class _Source:
    """Rows with scores or levels, in an order that does not change, as tables of some thousand rows."""

    def __init__(self, path: str):
        self.folder = ScoreFolder(path) if (Path(path) / "run.json").is_file() else None
        self.scorer = self.scorer_revision = self.image_folder = None
        if self.folder is None:
            self.shards = open_corpus(path)
            self.features = output_features(any(shard.embedded_images for shard in self.shards))
            return
        if (parts := self.folder.all_parts()) is None:
            raise ValueError(f"{path} is not complete: run `aligngpt score` again until it prints its report.")
        self.files = [self.folder.part_file(*part) for part in parts]
        run = self.folder.run
        self.scorer, self.scorer_revision = run["scorer"], run["scorer_revision"]
        self.image_folder = run["beside"]["image_folder"]

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """All rows; the columns of a score folder's parts and `alignment_level`, null where none is given."""
        if self.folder is None:
            yield from self._read_records()
            return
        for file in tqdm(self.files, desc="Reading scores", unit="part", leave=False):
            with pq.ParquetFile(file) as parquet:
                there = [name for name in parquet.schema_arrow.names if columns is None or name in columns]
                # Group by group: a part may have gigabytes of images
                for batch in parquet.iter_batches(rows_per_group(parquet.schema_arrow), columns=there):
                    table = pa.Table.from_batches([batch])
                    yield table.append_column("alignment_level", pa.nulls(table.num_rows, pa.int64()))

    def _read_records(self, rows_per_table: int = 4096) -> Iterator[pa.Table]:
        schema = self.features.arrow_schema.append(pa.field("alignment_level", pa.int64()))
        rows: list[dict[str, Any]] = []
        for shard in self.shards:
            for row, record in enumerate(shard.read(0)):
                rows.append(_row_of(record, shard.name, row, isinstance(self.features["image"], datasets.Image)))
                if len(rows) == rows_per_table:
                    yield pa.Table.from_pylist(rows, schema)
                    rows = []
        if rows:
            yield pa.Table.from_pylist(rows, schema)


def _row_of(record: Any, shard: str, row: int, embedded: bool) -> dict[str, Any]:
    try:
        sample = read_record(record)
        if isinstance(sample, Fault):
            raise sample
        check_single(sample.images)
        return {
            "shard": shard,
            "row": row,
            "id": f"{shard}:{row}" if sample.id is None else sample.id,
            **describe_sample(sample, embedded),
            "alignment_score": sample.score,
            "alignment_level": sample.level,
        }
    except Fault as fault:
        raise ValueError(f"Row {row} of {shard}: {fault.kind}: {fault}") from fault


def _choose_cuts(args: LevelArguments, source: _Source, histogram: ScoreHistogram, given: int) -> LevelCuts:
    scorer = {"scorer": source.scorer, "scorer_revision": source.scorer_revision}
    if args.apply is not None:
        old = LevelCuts.load(args.apply)
        if source.scorer is not None and (old.scorer, old.scorer_revision) != (source.scorer, source.scorer_revision):
            raise ValueError(
                f"The cut points are of scores by {old.scorer} ({old.scorer_revision}), these scores by "
                f"{source.scorer} ({source.scorer_revision}): they do not compare."
            )
        return LevelCuts(old.rule, old.num_levels, old.cut_points, len(histogram), **scorer)
    if args.random is not None:
        return LevelCuts("random", args.num_levels, [], len(histogram) or given, seed=args.random)
    if given and args.rule is None:
        return LevelCuts("given", args.num_levels, [], given)
    if not len(histogram):
        raise ValueError(f"{args.data} has no scores to cut: run `aligngpt score` first.")
    rule = args.rule or "equal-frequency"
    return LevelCuts(rule, args.num_levels, histogram.cut(args.num_levels, rule), len(histogram), **scorer)


def _valid(table: pa.Table, column: str) -> np.ndarray:
    return table[column].drop_null().to_numpy()


def _with_levels(source: _Source, cuts: LevelCuts, assign: Callable[[np.ndarray], np.ndarray]) -> Iterator[pa.Table]:
    """The source's rows with their levels; a text-only row has none."""
    generator = np.random.default_rng(cuts.seed)
    for table in source.tables():
        has_level = ~np.asarray(table["image"].is_null())
        if cuts.rule == "given":
            _check_complete(table, "alignment_level", has_level)
            new = _valid(table, "alignment_level")
            if len(wrong := np.flatnonzero((new < 0) | (new >= cuts.num_levels))):
                name = table["id"].filter(pa.array(has_level))[int(wrong[0])]
                raise ValueError(f"The level of {name} is {new[wrong[0]]}; the levels are 0..{cuts.num_levels - 1}.")
        elif cuts.rule == "random":
            # One number a pair in their order: other parts give the same levels
            new = (generator.random(int(has_level.sum())) * cuts.num_levels).astype(np.int64)
        else:
            _check_complete(table, "alignment_score", has_level)
            new = assign(_valid(table, "alignment_score"))
        column = np.full(table.num_rows, -1, dtype=np.int64)
        column[has_level] = new
        position = table.schema.get_field_index("alignment_level")
        yield table.set_column(position, "alignment_level", pa.array(column, mask=~has_level))


def _check_complete(table: pa.Table, column: str, needed: np.ndarray) -> None:
    """Whether every row with an image has a value."""
    without = needed & np.asarray(table[column].is_null())
    if without.any():
        row = table.slice(int(without.argmax()), 1).to_pylist()[0]
        score = row["alignment_score"] if column == "alignment_level" else None
        hint = "" if score is None else f" Its score is {score:.6g}, not an integer; a score has to be cut (--rule)."
        raise ValueError(f"{row['id']} has an image, but no {column}.{hint}")


def _at_least(table: pa.Table, min_level: int) -> pa.Table:
    levels = table["alignment_level"]
    return table.filter(pc.or_(pc.is_null(levels), pc.greater_equal(pc.fill_null(levels, -1), min_level)))
