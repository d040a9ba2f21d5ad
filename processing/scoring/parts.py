"""A corpus cut into parts: which process scores which rows, in which batches, and what a finished part says."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow as pa

from aligngpt.processing.corpus.faults import Fault
from aligngpt.processing.corpus.records import read_record
from aligngpt.processing.corpus.samples import Sample, stored_image
from aligngpt.processing.corpus.sources import Shard

from .folder import ScoreFolder
from .preparation import is_scored


@dataclass
class RowBatch:
    """
    Consecutive rows of one part of a shard. The last batch of a shard is empty and has no part: its `start` is the
    number of the shard's rows.
    """

    shard: int
    part: int | None
    start: int
    samples: list[Sample | Fault]


def share_out(num_shards: int, process: int, num_processes: int) -> dict[int, tuple[int, int]]:
    """
    This process's shards, each with `(first, step)` of its parts there. Whole shards where there are enough for all
    processes, so that none reads what another scores; else every process reads all and takes parts in turn.
    """
    if num_shards >= num_processes:
        return dict.fromkeys(range(process, num_shards, num_processes), (0, 1))
    return {shard: ((process - shard) % num_processes, num_processes) for shard in range(num_shards)}


def is_done(shard: int, share: tuple[int, int], done: set[tuple[int, int]], folder: ScoreFolder) -> bool:
    """Whether a share's parts are all there."""
    rows = folder.rows_of_shard(shard)
    first, step = share
    return rows is not None and done.issuperset((shard, part) for part in folder.parts_of(rows)[first::step])


def read_batches(
    index: int, shard: Shard, share: tuple[int, int], done: set[tuple[int, int]], rows_per_part: int, batch_size: int
) -> Iterator[RowBatch]:
    """The batches of a share's missing parts. None crosses a part's border, so a resumed run has the same ones."""
    first, step = share
    part = first
    while (index, part) in done:
        part += step
    # From the last part that is there, never from what may be beyond the end: rows are counted in passing
    while part > 0 and (index, part) not in done:
        part -= 1
    row, samples = part * rows_per_part - 1, []
    for row, record in enumerate(shard.read(row + 1), start=row + 1):
        part, position = divmod(row, rows_per_part)
        if (part - first) % step or (index, part) in done:
            continue
        samples.append(read_record(record))
        if len(samples) == batch_size or position == rows_per_part - 1:
            yield RowBatch(index, part, row + 1 - len(samples), samples)
            samples = []
    if samples:
        yield RowBatch(index, row // rows_per_part, row + 1 - len(samples), samples)
    yield RowBatch(index, None, row + 1, [])


def describe_rows(
    batch: RowBatch, pairs: list[dict[str, Any]], shard: str, features: datasets.Features, keep_images: bool
) -> list[dict]:
    """Each row as the output has it, with what the part's counts need beside."""
    rows = []
    for row, (sample, pair) in enumerate(zip(batch.samples, pairs, strict=True), start=batch.start):
        name = f"{shard}:{row}" if sample.id is None else sample.id
        rows.append(pair | {"shard_index": batch.shard, "part": batch.part})
        rows[-1] |= {"shard": shard, "row": row, "id": name}
        if "fault" not in pair:
            embedded = isinstance(features["image"], datasets.Image)
            rows[-1] |= describe_sample(sample, embedded, keep_images)
    return rows


def describe_sample(sample: Sample, embedded: bool, keep_bytes: bool = True) -> dict[str, Any]:
    """Image, caption and messages of a pair, or of a text-only record, as the output has them."""
    image = stored_image(sample.images[0], embedded, keep_bytes) if sample.images else None
    return {"image": image, "caption": sample.caption, "messages": sample.written_messages()}


def output_features(embedded_images: bool) -> datasets.Features:
    """Columns of a part. Images are paths or, where the corpus has them as bytes, bytes."""
    text = datasets.Value("string")
    return datasets.Features(
        {
            "shard": text,
            "row": datasets.Value("int64"),
            "id": text,
            "image": datasets.Image() if embedded_images else text,
            "caption": text,
            "messages": datasets.List({"role": text, "content": text, "weight": datasets.Value("int8")}),
            "alignment_score": datasets.Value("float32"),
        }
    )


def write_part(folder: ScoreFolder, rows: list[dict], scores: list[float], features: datasets.Features) -> None:
    """
    Writes a part with the scores of those rows that have one.

    Raises:
        FloatingPointError: if a score is not finite; the message names the pair.
    """
    scored = [row for row in rows if is_scored(row)]
    for row, score in zip(scored, scores, strict=True):
        if not math.isfinite(score):
            raise FloatingPointError(
                f"The score of row {row['row']} of {row['shard']}, {row['id']}, is {score}. Does the scorer overflow "
                "in float16? Try --dtype bfloat16 or float32."
            )
        row["alignment_score"] = score
    faults = [
        {name: row[name] for name in ("shard", "row", "id")}
        | {"kind": row["fault"].kind, "message": str(row["fault"])}
        for row in rows
        if "fault" in row
    ]
    kept = [{name: row.get(name) for name in features} for row in rows if "fault" not in row]
    counts = {
        "rows": len(rows),
        "scored": len(scored),
        "text_only": len(kept) - len(scored),
        "truncated_captions": sum(row["truncated"] for row in rows),
        "converted": Counter(kind for row in scored for kind in row["converted"]),
        "faults": faults,
    }
    table = pa.Table.from_pylist(kept, schema=features.arrow_schema)
    folder.write_part(rows[0]["shard_index"], rows[0]["part"], table, counts)
