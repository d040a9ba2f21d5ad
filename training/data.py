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
from aligngpt.processing.corpus.records import count_images_per_turn, get_caption, get_images, get_level, get_messages
from aligngpt.processing.corpus.sources import Shard, open_corpus
from aligngpt.training.arguments import ComposeArguments, DataArguments, StageConfig


logger = logging.get_logger(__name__)

MAX_LEVEL = 2**31  # anything above is a mistake, and need not fit into a column


def load_training_data(
    data: str,
    *,
    split: str = "train",
    config_name: str | None = None,
    streaming: bool = False,
    on_bad_row: Literal["fail", "skip", "keep"] = "fail",
) -> Dataset | IterableDataset:
    """
    Rows to train on. Images stay what they are in the data, paths or encoded bytes; the collator opens them.

    Args:
        data (`str`): what `aligngpt.processing.corpus.open_corpus` takes (JSON, JSON Lines, parquet, a glob of them, a
            folder or Hub id that datasets loads), or the output folder of `aligngpt levels`. A record has `image` or
            `images`, and one of `messages`, `conversations` (LLaVA's, with `<image>` in the text) and `caption`;
            optionally `id` and `alignment_level` (or `similarity`, the authors' name for it).
        split, config_name (`str`, *optional*): of a data set on the Hub.
        streaming (`bool`): read the files as rows are asked for, instead of copying all rows into the cache of
            datasets first.
        on_bad_row (`str`): what to do with records that are of no known form: `"fail"`; `"skip"` leaves them out and
            logs how many; `"keep"`, as always when streaming, keeps them, with the reason in the column `fault`, for
            the collator to deal with.

    Returns:
        columns `id` (string), `images` (list), `messages` (list of role, content, num_images), `alignment_level` (-1
        where none is given), `num_images` and `length` (bytes of text), by which rows are grouped, and `fault` (empty,
        or what is wrong).

    Raises:
        ValueError: if there are no records, or one is of no known form and `on_bad_row` is `"fail"`; the message names
            the first ones.
    """
    folder = Path(data)
    if (folder / "pairs.json").is_file():  # what `aligngpt levels` wrote, beside its pictures
        data = str(folder / "pairs.json")
    elif (folder / "alignment_levels.json").is_file():
        data = str(folder / "*.parquet")
    source = {"data": data, "split": split, "config_name": config_name}
    shards = open_corpus(**source, streaming=streaming)
    if all(next(shard.read(0), None) is None for shard in shards):
        raise ValueError(f"There are no records in {data}.")
    features = Features(
        {
            "id": Value("string"),
            "images": List(Image(decode=False) if any(s.embedded_images for s in shards) else Value("string")),
            "messages": List({"role": Value("string"), "content": Value("string"), "num_images": Value("int32")}),
            "alignment_level": Value("int64"),
            "num_images": Value("int32"),
            "length": Value("int64"),
            "fault": Value("string"),
        }
    )
    if streaming:
        # One shard, however many files: accelerate gives every process files of its own where it can, so that rows of
        # small files come more often, and processes wait for each other at ends that are not the same
        return IterableDataset.from_generator(_read_rows, features=features, gen_kwargs=source)
    # The cache is found again by these arguments, so they have to say what is in the files and who read them
    times = [os.stat(shard.file).st_mtime_ns if os.path.isfile(shard.file) else 0 for shard in shards]
    key = json.dumps([__version__, times, [shard.fingerprint for shard in shards]])
    dataset = Dataset.from_generator(_read_rows, features=features, gen_kwargs={**source, "key": key})
    return _handle_faults(dataset, on_bad_row) if on_bad_row != "keep" else dataset


def load_datasets(data_args: DataArguments, training_args: StageConfig) -> dict[str, Dataset | IterableDataset | None]:
    """
    `train_dataset` and `eval_dataset` (None without `eval_file`) for a trainer. On a machine with several processes
    the first one fills the cache of datasets, and the others find it filled.
    """
    with training_args.main_process_first(desc="reading the records"):
        options = {"config_name": data_args.dataset_config, "on_bad_row": data_args.on_bad_row}
        train = load_training_data(
            data_args.train_file, split=data_args.train_split, streaming=data_args.streaming, **options
        )
        evaluation = data_args.eval_file and load_training_data(
            data_args.eval_file, split=data_args.eval_split, **options
        )
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
    cuts = Path(data_args.train_file, "alignment_levels.json")
    if cuts.is_file():
        found["the data were cut into"] = json.loads(cuts.read_text(encoding="utf-8"))["num_levels"]
    found = {what: number for what, number in found.items() if number is not None}
    if len(set(found.values())) > 1:
        told = ", ".join(f"{what} {number}" for what, number in found.items())
        raise ValueError(f"The numbers of alignment levels differ: {told}.")


def _read_rows(data: str, split: str, config_name: str | None, key: str | None = None) -> Iterator[dict[str, Any]]:
    for shard in open_corpus(data, split, config_name, streaming=key is None):
        for index, record in enumerate(shard.read(0)):
            yield _read_row(record, index, shard)


def _read_row(record: dict[str, Any] | Fault, index: int, shard: Shard) -> dict[str, Any]:
    row = {"id": f"{shard.name}:{index}", "images": [], "messages": [], "alignment_level": -1, "fault": ""}
    try:
        if isinstance(record, Fault):
            raise record
        if record.get("id") is not None:
            row["id"] = _encodable(str(record["id"]))
        row["images"] = [_read_image(image, shard.embedded_images) for image in get_images(record)]
        messages = get_messages(record)
        if messages is None:
            messages = [{"role": "user", "content": ""}, {"role": "assistant", "content": get_caption(record)}]
            counts = [len(row["images"]), 0]
        else:
            counts = count_images_per_turn(record, len(row["images"]))
        row["messages"] = [
            {"role": message["role"], "content": _encodable(message["content"]), "num_images": count}
            for message, count in zip(messages, counts, strict=True)
        ]
        row["alignment_level"] = _read_level(get_level(record))
    except Fault as fault:
        row |= {"images": [], "messages": [], "fault": f"{fault.kind}: {_encodable(str(fault))}"}
    length = sum(len(message["content"].encode()) for message in row["messages"])
    return row | {"num_images": len(row["images"]), "length": length}


def _encodable(text: str) -> str:
    """The text without half characters, which JSON can hold, and no tokenizer or file."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _read_image(image: Any, embedded: bool) -> Any:
    if isinstance(image, dict):
        image = image if image.get("bytes") is not None else image.get("path")
    if embedded:  # the column holds pictures; a path among them is one all the same
        image = {"path": image, "bytes": None} if isinstance(image, str) else image
        return {"path": None, "bytes": image} if isinstance(image, bytes) else image
    if not isinstance(image, str):
        raise Fault("missing", f"An image is a path, not {type(image).__name__}.")
    return _encodable(image)


def _read_level(level: Any) -> int:
    if level is None:
        return -1
    is_number = isinstance(level, int | float) and not isinstance(level, bool)
    if not is_number or not abs(level) < MAX_LEVEL or level != int(level):
        raise Fault("malformed_record", f"The alignment level is {level!r}, no integer.")
    return int(level)


def _handle_faults(dataset: Dataset, on_bad_row: str) -> Dataset:
    faults = dataset.with_format("arrow")["fault"].to_pylist() if len(dataset) else []
    bad = [index for index, fault in enumerate(faults) if fault]
    if not bad:
        return dataset
    first = "; ".join(f"row {dataset[index]['id']}: {faults[index]}" for index in bad[:5])
    kinds = dict(Counter(faults[index].split(":")[0] for index in bad))
    found = f"{len(bad)} of {len(faults)} records cannot be trained on ({kinds}). {first}"
    if on_bad_row == "fail":
        raise ValueError(f"{found}. Mend them (`--check` lists them all), or leave them out by --on_bad_row skip.")
    logger.warning(f"{found}. They are left out.")
    return dataset.select([index for index, fault in enumerate(faults) if not fault])
