"""Records to batches: what a row of training data looks like, and the collator that adds alignment levels to TRL's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, List, Value, load_dataset
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling


ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def load_training_data(path: str, image_folder: str | None = None) -> Dataset:
    """
    Training data as columns `id` (string), `images` (list of paths or URLs, empty for text-only rows), `messages`
    (list of role and content) and `alignment_level` (-1 where none is given).

    Args:
        path (`str`): a JSON, JSONL or parquet file. A record has `image` or `images`, and one of `messages`,
            `conversations` (LLaVA's, with `<image>` in the text) and `caption`; optionally `id` and `alignment_level`
            (or `similarity`, the authors' name for it).
        image_folder (`str`, *optional*): where relative image paths start.

    Raises:
        ValueError: if a record has no text or text of an unknown form; the message names it.
    """
    file_format = "parquet" if path.endswith(".parquet") else "json"
    dataset = load_dataset(file_format, data_files=path, split="train")
    features = Features(
        {
            "id": Value("string"),
            "images": List(Value("string")),
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
    images = record.get("images") or record.get("image") or []
    images = [images] if isinstance(images, str) else images
    if image_folder is not None:
        images = [image if "://" in image else str(Path(image_folder) / image) for image in images]
    if record.get("messages"):
        messages = [{"role": message["role"], "content": message["content"]} for message in record["messages"]]
    elif record.get("conversations"):
        messages = [
            {"role": ROLES[turn["from"]], "content": turn["value"].replace("<image>", "").strip()}
            for turn in record["conversations"]
        ]
    elif isinstance(record.get("caption"), str):
        messages = [{"role": "user", "content": ""}, {"role": "assistant", "content": record["caption"]}]
    else:
        raise ValueError(f"Record {name} has none of messages, conversations and caption: {sorted(record)}.")
    level = record.get("alignment_level", record.get("similarity"))
    return {"id": name, "images": images, "messages": messages, "alignment_level": -1 if level is None else level}


@dataclass
class AlignGPTDataCollator(DataCollatorForVisionLanguageModeling):
    """
    TRL's collator, with the loss on assistant turns by default, and `alignment_levels` (batch,) in the batch.

    Args:
        num_alignment_levels (`int`, *optional*): given in stage 1: every row needs a level below it. Without it levels
            are left to the gate, whatever the rows say.

    Raises:
        ValueError: if a level is missing or out of range, or a row has nothing to train on; the message names the row.
    """

    assistant_only_loss: bool = True
    num_alignment_levels: int | None = None

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        examples = [dict(example) for example in examples]
        names = [example.pop("id", index) for index, example in enumerate(examples)]
        levels = [example.pop("alignment_level", None) for example in examples]
        batch = super().torch_call(examples)
        if self.num_alignment_levels is not None:
            for name, level in zip(names, levels, strict=True):
                if level is None or not 0 <= level < self.num_alignment_levels:
                    raise ValueError(
                        f"Row {name} has alignment level {level}; stage 1 needs 0..{self.num_alignment_levels - 1} in "
                        "every row. Score the pairs and cut the scores into levels first."
                    )
            batch["alignment_levels"] = torch.tensor(levels)
        without_target = [name for name, row in zip(names, batch["labels"], strict=True) if (row == -100).all()]
        if without_target:
            raise ValueError(
                f"Rows {without_target} have no token to train on: no assistant turn, or it was cut off at "
                f"max_length={self.max_length}."
            )
        return batch
