"""What the rows of a data set hold, as far as that is told before training: pictures, and what reading changed."""

from collections import Counter
from itertools import islice
from typing import Any

from datasets import Dataset, IterableDataset
from transformers.utils import logging

from aligngpt.processing.corpus.faults import Fault
from aligngpt.processing.corpus.images import open_image
from aligngpt.processing.corpus.sources import open_corpus
from aligngpt.training.arguments import DataArguments


logger = logging.get_logger(__name__)

STREAMED_ROWS_LOOKED_AT = 1000
NOTES = {
    "leading_answer_dropped": "a first turn by the assistant was left out, as in the authors' code.",
    "level_without_image": "a level or score without an image means nothing, and was left aside.",
    "caption_without_question": "a caption without a question; stage 2 trains it as the answer to an empty one.",
}


def tell_about_rows(dataset: Dataset | IterableDataset, data_args: DataArguments, needs_images: bool) -> None:
    """
    Logs what reading changed, and how many captions come without a question where stage 2 would answer one. Of a
    stream the first thousand rows are looked at.

    Raises:
        ValueError: if no row has a picture, and [`explain_missing_pictures`] says why one should, or a row with one
            has no level where stage 1 needs it. Where the rows of a stream go on, the first is logged.
    """
    columns, is_whole = _look_at(dataset, ("id", "num_images", "alignment_level", "notes"))
    num_images, notes = columns["num_images"], columns["notes"]
    if not any(num_images) and (needed := explain_missing_pictures(data_args, needs_images)):
        if is_whole:
            raise ValueError(needed)
        logger.warning(f"Of the first {STREAMED_ROWS_LOOKED_AT} rows: {needed}")
    if needs_images and is_whole:
        _check_levels(columns, data_args)
    counts = Counter(note for row in notes for note in row)
    if needs_images:
        counts.pop("caption_without_question", None)  # which is what stage 1 trains on
    for note, count in counts.items():
        logger.warning(f"{count} of {len(num_images)} rows of {data_args.data}: {NOTES[note]}")


def check_first_image(dataset: Dataset | IterableDataset, data_args: DataArguments) -> None:
    """
    Opens the images of the first row that has any, so that a wrong image folder shows at once; a stream is left alone,
    for it may be long in coming. With `on_error="skip"` they may be broken.

    Raises:
        ImageFolderNeededError: if they are paths, and no folder is named.
        ValueError: if they cannot be opened; the message names the row.
    """
    if isinstance(dataset, IterableDataset):
        return
    counts = _look_at(dataset, ("num_images",))[0]["num_images"]
    row = next((dataset[number] for number, count in enumerate(counts) if count), {"images": []})
    for image in row["images"]:
        try:
            open_image(image, data_args.image_folder)
        except Fault as fault:
            if data_args.on_error == "fail":
                raise ValueError(
                    f"Rows that cannot be trained on: row {row['id']}: {fault.kind}: {fault} Is the image folder the "
                    "right one? `--check` looks for all such rows."
                ) from fault


def _look_at(dataset: Dataset | IterableDataset, names: tuple[str, ...]) -> tuple[dict[str, list[Any]], bool]:
    """Columns of the rows, of a stream of its first ones; and whether these are all."""
    if isinstance(dataset, IterableDataset):
        rows = list(islice(dataset, STREAMED_ROWS_LOOKED_AT + 1))
        return {name: [row[name] for row in rows] for name in names}, len(rows) <= STREAMED_ROWS_LOOKED_AT
    arrow = dataset.with_format("arrow")
    return {name: arrow[name].to_pylist() if len(dataset) else [] for name in names}, True


def _check_levels(columns: dict[str, list[Any]], data_args: DataArguments) -> None:
    """Whether each row with an image has a level; which ones there are, the model says."""
    rows = zip(columns["id"], columns["num_images"], columns["alignment_level"], strict=True)
    without = [name for name, num_images, level in rows if num_images and level < 0]
    if without:
        raise ValueError(
            f"{len(without)} rows of {data_args.data} have an image and no alignment level, which stage 1 needs: "
            f"{', '.join(without[:5])}. Score the pairs (`aligngpt score`) and cut the scores into levels (`aligngpt "
            "levels`) first."
        )


def count_rows(dataset: Dataset | IterableDataset) -> dict[str, int] | None:
    """Rows, rows with images, and images, for the model card; None for a stream, whose end nobody has seen."""
    if isinstance(dataset, IterableDataset):
        return None
    num_images = _look_at(dataset, ("num_images",))[0]["num_images"]
    return {"rows": len(num_images), "rows_with_images": sum(map(bool, num_images)), "images": sum(num_images)}


def explain_missing_pictures(data_args: DataArguments, needs_images: bool) -> str | None:
    """What to say if no row has a picture; None if that is all right."""
    options = data_args.reading_options()
    options.pop("interleaved")
    shards = open_corpus(data_args.data, **options)
    if needs_images:
        why = "stage 1 needs one in each"
    elif data_args.image_folder is not None:
        why = f"an image folder is named, {data_args.image_folder}"
    elif data_args.image_column is not None:
        why = f"a column of images is named, {data_args.image_column}"
    elif any(shard.embedded_images and "tar" not in shard.file.split(".") for shard in shards):
        why = "its tables hold bytes"
    else:
        return None
    fields = next((sorted(row) for row in shards[0].read(0) if isinstance(row, dict)), [])
    return (
        f"No row of {data_args.data} has a picture, and {why}. Pictures are looked for in `image`, `images` and the "
        f"messages; the first record has {fields}. Name the column with --image_column."
    )
