"""Records to batches: what a row of training data looks like, and the collator that adds alignment levels to TRL's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Image, List, Value, load_dataset
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from aligngpt.processing.corpus import with_encoded_images
from aligngpt.processing.records import PairFault, get_caption, get_images, get_level, get_messages


def load_training_data(path: str, image_folder: str | None = None) -> Dataset:
    """
    Training data as columns `id` (string), `images` (list of paths or URLs, or of pictures where the data has their
    bytes; empty for text-only rows), `messages` (list of role and content) and `alignment_level` (-1 where none is
    given).

    Args:
        path (`str`): a JSON, JSONL or parquet file, a glob of them, or a folder of parquet files, as `aligngpt levels`
            writes it. A record has `image` or `images`, and one of `messages`, `conversations` (LLaVA's, with
            `<image>` in the text) and `caption`; optionally `id` and `alignment_level` (or `similarity`, the authors'
            name for it).
        image_folder (`str`, *optional*): where relative image paths start.

    Raises:
        ValueError: if a record has no text or text of an unknown form; the message names it.
    """
    if (Path(path) / "pairs.json").is_file():
        path = str(Path(path) / "pairs.json")
    files = str(Path(path) / "*.parquet") if Path(path).is_dir() else path
    file_format = "parquet" if files.endswith(".parquet") else "json"
    dataset = load_dataset(file_format, data_files=files, split="train")
    dataset, has_images_inside = with_encoded_images(dataset)
    features = Features(
        {
            "id": Value("string"),
            "images": List(Image() if has_images_inside else Value("string")),
            "messages": List({"role": Value("string"), "content": Value("string")}),
            "alignment_level": Value("int64"),
        }
    )
    return dataset.map(
        _normalize_record,
        with_indices=True,
        fn_kwargs={"image_folder": image_folder},
        remove_columns=dataset.column_names,
        features=features,
        desc="Reading records",
    )


def _normalize_record(record: dict[str, Any], index: int, image_folder: str | None) -> dict[str, Any]:
    name = str(record["id"] if record.get("id") is not None else index)
    try:
        images = get_images(record)
        messages = get_messages(record) or [
            {"role": "user", "content": ""},
            {"role": "assistant", "content": get_caption(record)},
        ]
    except PairFault as fault:
        raise ValueError(f"Record {name}: {fault}") from fault
    images = [image if isinstance(image, str) or image["bytes"] is not None else image["path"] for image in images]
    if image_folder is not None:
        images = [
            str(Path(image_folder) / image) if isinstance(image, str) and "://" not in image else image
            for image in images
        ]
    level = get_level(record)
    return {"id": name, "images": images, "messages": messages, "alignment_level": -1 if level is None else level}


@dataclass
class AlignGPTDataCollator(DataCollatorForVisionLanguageModeling):
    """
    TRL's collator, with the loss on assistant turns by default, and `alignment_levels` (batch,) in the batch.

    Args:
        num_alignment_levels (`int`, *optional*): given in stage 1: every row with an image needs a level below it.
            Without it levels are left to the gate, whatever the rows say.

    Raises:
        ValueError: if a level is missing or out of range, or a row has nothing to train on; the message names the row.
    """

    assistant_only_loss: bool = True
    num_alignment_levels: int | None = None

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        examples = [dict(example) for example in examples]
        names = [example.pop("id", index) for index, example in enumerate(examples)]
        levels = [example.pop("alignment_level", None) for example in examples]
        has_image = [bool(example.get("images")) for example in examples]
        batch = super().torch_call(examples)
        if self.num_alignment_levels is not None:
            for name, level, needed in zip(names, levels, has_image, strict=True):
                if needed and (level is None or not 0 <= level < self.num_alignment_levels):
                    raise ValueError(
                        f"Row {name} has alignment level {level}; stage 1 needs 0..{self.num_alignment_levels - 1} in "
                        "every row with an image. Score the pairs (`aligngpt score`) and cut the scores into levels "
                        "(`aligngpt levels`) first."
                    )
            batch["alignment_levels"] = torch.tensor([-1 if level is None else level for level in levels])
        without_target = [name for name, row in zip(names, batch["labels"], strict=True) if (row == -100).all()]
        if without_target:
            raise ValueError(
                f"Rows {without_target} have no token to train on: no assistant turn, or it was cut off at "
                f"max_length={self.max_length}."
            )
        return batch
