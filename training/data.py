"""Training data: records of any of the known forms become rows of one form, which the collator makes batches of."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, Features, Image, IterableDataset, List, Value
from transformers.utils import logging

from aligngpt import AlignGPTConfig, __version__
from aligngpt.processing.corpus.faults import Fault
from aligngpt.processing.corpus.records import read_record
from aligngpt.processing.corpus.samples import Sample, stored_image, text_of
from aligngpt.processing.corpus.sources import open_corpus
from aligngpt.training.arguments import ComposeArguments, DataArguments, StageConfig
from aligngpt.training.row_counts import tell_about_rows


logger = logging.get_logger(__name__)


def load_training_data(
    data: str,
    *,
    split: str = "train",
    config_name: str | None = None,
    streaming: bool = False,
    on_bad_row: Literal["fail", "skip", "keep"] = "fail",
    image_column: str | None = None,
    text_column: str | None = None,
    interleaved: bool = False,
) -> Dataset | IterableDataset:
    """
    Rows to train on. Images stay what they are in the data, paths or encoded bytes; the collator opens them.

    Args:
        data (`str`): what `aligngpt.processing.corpus.sources.open_corpus` takes (JSON, JSON Lines, parquet, a glob of
            them, a folder or Hub id that datasets loads), or the output folder of `aligngpt levels`. What a record may
            look like is told in `aligngpt.processing.corpus.records`.
        split, config_name (`str`, *optional*): of a data set on the Hub.
        streaming (`bool`): read the files as rows are asked for, instead of copying all rows into the cache of
            datasets first.
        on_bad_row (`str`): what to do with records that are of no known form: `"fail"`; `"skip"` leaves them out and
            logs how many; `"keep"`, as always when streaming, keeps them, with the reason in the column `fault`, for
            the collator to deal with.
        image_column, text_column (`str`, *optional*): what is called otherwise than records expect.
        interleaved (`bool`): whether `<image>` in a string stays in its place, instead of coming first in its turn.

    Returns:
        columns `id` (string), `images` (list), `messages` (list of role, content as typed parts, and weight, 0 where
        an answer is not trained on), `alignment_level` (-1 where none is given), `num_images` and `length` (bytes of
        text), by which rows are grouped, `notes` (what reading changed, and `caption_without_question`), and `fault`
        (None, or kind and message). Each row is itself a record.

    Raises:
        ValueError: if there are no records, or one is of no known form and `on_bad_row` is `"fail"`; the message names
            the first ones.
    """
    folder = Path(data)
    if (folder / "pairs.json").is_file():  # what `aligngpt levels` wrote, beside its pictures
        data = str(folder / "pairs.json")
    elif (folder / "alignment_levels.json").is_file():
        data = str(folder / "*.parquet")
    elif (folder / "run.json").is_file():
        raise ValueError(f"{data} holds scores, not levels: cut them first, by `aligngpt levels {data}`.")
    source = {"data": data, "split": split, "config_name": config_name}
    source |= {"image_column": image_column, "text_column": text_column}
    shards = open_corpus(**source, streaming=streaming)
    if all(next(shard.read(0), None) is None for shard in shards):
        raise ValueError(f"There are no records in {data}.")
    features = Features(
        {
            "id": Value("string"),
            "images": List(Image(decode=False) if any(s.embedded_images for s in shards) else Value("string")),
            "messages": List(
                {
                    "role": Value("string"),
                    "content": List({"type": Value("string"), "text": Value("string")}),
                    "weight": Value("int8"),
                }
            ),
            "alignment_level": Value("int64"),
            "num_images": Value("int32"),
            "length": Value("int64"),
            "notes": List(Value("string")),
            "fault": {"kind": Value("string"), "message": Value("string")},
        }
    )
    source["interleaved"] = interleaved
    if streaming:
        # One shard, however many files: accelerate gives every process files of its own where it can, so that rows of
        # small files come more often, and processes wait for each other at ends that are not the same
        return IterableDataset.from_generator(_read_rows, features=features, gen_kwargs=source)
    # The cache is found again by these arguments, so they have to say what is in the files and who read them
    times = [os.stat(shard.file).st_mtime_ns if os.path.isfile(shard.file) else 0 for shard in shards]
    key = json.dumps([__version__, times, [shard.fingerprint for shard in shards]])
    dataset = Dataset.from_generator(_read_rows, features=features, gen_kwargs={**source, "key": key})
    return _handle_faults(dataset, on_bad_row) if on_bad_row != "keep" else dataset


def load_datasets(
    data_args: DataArguments, training_args: StageConfig, needs_images: bool = False
) -> dict[str, Dataset | IterableDataset | None]:
    """
    `train_dataset` and `eval_dataset` (None without `eval_file`) for a trainer. On a machine with several processes
    the first one fills the cache of datasets, and the others find it filled.

    Raises:
        ValueError: as [`load_training_data`]; and if no row has a picture, where the stage needs them (`needs_images`)
            or an image folder is named.
    """
    with training_args.main_process_first(desc="reading the records"):
        options = data_args.reading_options() | {"on_bad_row": data_args.on_error}
        train = load_training_data(data_args.data, **options)
        options |= {"split": data_args.eval_split, "streaming": False}
        evaluation = data_args.eval_file and load_training_data(data_args.eval_file, **options)
        tell_about_rows(train, data_args, needs_images)
    if data_args.streaming:
        # Without an end: a run that is resumed passes over as many rows as it has seen, whichever pass they were in
        seed = training_args.data_seed or training_args.seed
        train = train.repeat(None).shuffle(seed=seed, buffer_size=data_args.shuffle_buffer_size)
    return {"train_dataset": train, "eval_dataset": evaluation}


def check_num_levels(config: AlignGPTConfig, compose_args: ComposeArguments, data_args: DataArguments) -> None:
    """
    Whether the model has as many alignment embeddings as were asked for, and as the data have levels: of those above
    the data's none would be trained, and the last one is the global one.

    Raises:
        ValueError: if not.
    """
    found = {"the model has": config.num_alignment_levels, "asked for were": compose_args.num_alignment_levels}
    cuts = Path(data_args.data, "alignment_levels.json")
    if cuts.is_file():
        found["the data were cut into"] = json.loads(cuts.read_text(encoding="utf-8"))["num_levels"]
    found = {what: number for what, number in found.items() if number is not None}
    if len(set(found.values())) > 1:
        told = ", ".join(f"{what} {number}" for what, number in found.items())
        raise ValueError(
            f"The numbers of alignment levels differ: {told}. Compose a model with as many by --num_alignment_levels, "
            "or cut the scores again by `aligngpt levels --num_levels`."
        )


def _read_rows(interleaved: bool, key: str | None = None, **source) -> Iterator[dict[str, Any]]:
    for shard in open_corpus(**source, streaming=key is None):
        for index, record in enumerate(shard.read(0)):
            yield _make_row(read_record(record, interleaved), f"{shard.name}:{index}", shard.embedded_images)


def _make_row(sample: Sample | Fault, name: str, embedded: bool) -> dict[str, Any]:
    row = {"id": _encodable(name if sample.id is None else sample.id), "images": [], "messages": [], "notes": []}
    row |= {"alignment_level": -1, "num_images": 0, "length": 0, "fault": None}
    try:
        if isinstance(sample, Fault):
            raise sample
        sample.caption  # noqa: B018  raises, for a row without an answer has nothing to train on
        images = [stored_image(image, embedded) for image in sample.images]
    except Fault as fault:
        return row | {"fault": {"kind": fault.kind, "message": _encodable(str(fault))}}
    messages = [
        {
            "role": message["role"],
            "content": [{"type": part["type"], "text": part.get("text")} for part in message["content"]],
            "weight": None if message["weight"] else 0,
        }
        for message in sample.messages
    ]
    return row | {
        "images": images,
        "messages": messages,
        "alignment_level": -1 if sample.level is None else sample.level,
        "num_images": len(sample.images),
        "length": sum(len(text_of(message["content"]).encode()) for message in sample.messages),
        "notes": sample.notes + ([] if sample.has_question else ["caption_without_question"]),
    }


def _encodable(text: str) -> str:
    """The text with half characters, which JSON can hold and no table, spelt out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _handle_faults(dataset: Dataset, on_bad_row: str) -> Dataset:
    faults = dataset.with_format("arrow")["fault"].to_pylist() if len(dataset) else []
    bad = [index for index, fault in enumerate(faults) if fault]
    if not bad:
        return dataset
    first = "; ".join(f"row {dataset[i]['id']}: {faults[i]['kind']}: {faults[i]['message']}" for i in bad[:5])
    kinds = dict(Counter(faults[index]["kind"] for index in bad))
    found = f"{len(bad)} of {len(faults)} records cannot be trained on ({kinds}). {first.removesuffix('.')}"
    if on_bad_row == "fail":
        raise ValueError(f"{found}. Mend them (`--check` lists them all), or leave them out by --on_error skip.")
    logger.warning(f"{found}. They are left out.")
    return dataset.select([index for index, fault in enumerate(faults) if not fault])
