"""Rows to batches: opens the images, writes the chat template, puts labels on what the assistant says."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import torch
from transformers import BatchFeature
from transformers.data.data_collator import DataCollatorMixin

from aligngpt.processing import AlignGPTProcessor
from aligngpt.processing.chat_templates import is_interleaved
from aligngpt.processing.corpus.faults import Fault
from aligngpt.processing.corpus.images import open_image
from aligngpt.processing.corpus.records import read_record
from aligngpt.processing.corpus.samples import Sample, escape_placeholders


# Stands for a row that is skipped: it keeps its place in the batch, without a token to train on
EMPTY_CONVERSATION = [
    {"role": "user", "content": [{"type": "text", "text": ""}]},
    {"role": "assistant", "content": [{"type": "text", "text": ""}]},
]


@dataclass
class AlignGPTDataCollator(DataCollatorMixin):
    """
    Batches for both stages from rows of [`~aligngpt.training.data.load_training_data`], or from other records (see
    `aligngpt.processing.corpus.records`), as TRL's trainers take them. Runs in the data loader's workers, where it
    opens the images.

    Args:
        processor (`AlignGPTProcessor`): of the model.
        max_length (`int`, *optional*): longer rows are cut on the right, and counted. Image tokens are never cut.
        pad_to_multiple_of (`int`, *optional*): of tokens.
        chat_template (`str`, *optional*): name of one of the processor's templates; `"plain"` in stage 1.
        num_alignment_levels (`int`, *optional*): given in stage 1: every row with an image needs a level below it.
            Without it levels are left to the gate, whatever the rows say.
        image_folder (`str`, *optional*): where relative image paths start.
        on_bad_row (`str`): what to do with a row whose images cannot be opened, or which does not fit: `"fail"`, or
            `"skip"`, which keeps the row's place in the batch without training on it.

    Returns:
        the processor's inputs; `labels` (B, L), -100 but in what the assistant says, the token included that ends its
        turn; in stage 1 `alignment_levels` (B,); and lists that the trainer takes out: `row_ids`, and of rows that
        were not trained on as they are, `skipped_rows` (a `Fault` each), `truncated_rows`, `rows_without_target`.

    Raises:
        Fault: if a level is missing or out of range.
        ValueError: with `on_bad_row="fail"`, if a row is bad, or no row of the batch has anything to train on. The
            message names the rows.
    """

    processor: AlignGPTProcessor
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    chat_template: str | None = None
    num_alignment_levels: int | None = None
    image_folder: str | None = None
    on_bad_row: Literal["fail", "skip"] = "fail"
    return_tensors: str = "pt"

    def torch_call(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        names = [str(row.get("id", index) if isinstance(row, dict) else index) for index, row in enumerate(rows)]
        conversations, levels, faults = [], [], {}
        for index, row in enumerate(rows):
            try:
                sample = self._read_sample(row)
                conversations.append(self._make_conversation(sample))
                levels.append(sample.level)
            except Fault as fault:
                faults[index] = fault
                conversations.append(EMPTY_CONVERSATION)
                levels.append(None)
        batch = self._encode(conversations, faults)
        truncated = self._truncate(batch, conversations, faults)
        if faults and self.on_bad_row == "fail":
            found = "; ".join(f"row {names[index]}: {fault.kind}: {fault}" for index, fault in faults.items())
            raise ValueError(f"Rows that cannot be trained on: {found}. `--check` looks for all of them beforehand.")
        labels = batch["input_ids"].masked_fill(batch.pop("assistant_masks") == 0, -100)
        labels[sorted(faults)] = -100
        without_target = [names[i] for i in (labels == -100).all(-1).nonzero().flatten().tolist() if i not in faults]
        if len(without_target) == len(rows) and self.on_bad_row == "fail":
            raise ValueError(
                f"Rows {without_target} have no token to train on: no assistant turn, or it was cut off at "
                f"max_length={self.max_length}."
            )
        if self.num_alignment_levels is not None:
            batch["alignment_levels"] = self._get_levels(levels, names, conversations)
        return {
            **batch,
            "labels": labels,
            "row_ids": names,
            "skipped_rows": [Fault(fault.kind, str(fault), names[index]) for index, fault in faults.items()],
            "truncated_rows": [names[index] for index in truncated],
            "rows_without_target": without_target,
        }

    def _read_sample(self, row: dict[str, Any]) -> Sample:
        if isinstance(row, dict) and isinstance(row.get("fault"), dict):  # of `load_training_data`
            raise Fault(**row["fault"])
        sample = read_record(row, is_interleaved(self.processor.chat_template))
        if isinstance(sample, Fault):
            raise sample
        return sample

    def _make_conversation(self, sample: Sample) -> list[dict[str, Any]]:
        """The sample's messages with their pictures inside."""
        images = iter([open_image(image, self.image_folder)[0] for image in sample.images])
        messages = [
            {**message, "content": [self._fill_part(part, images) for part in message["content"]]}
            for message in sample.messages
        ]
        if self.chat_template == "plain":  # captions and nothing else: what is not trained on is left out
            return [message for message in messages if message["weight"] != 0]
        return messages

    def _fill_part(self, part: dict[str, str], images: Iterator[Any]) -> dict[str, Any]:
        if part["type"] == "image":
            return {"type": "image", "image": next(images)}
        placeholders = (self.processor.align_token, self.processor.image_token)
        return {"type": "text", "text": escape_placeholders(part["text"], placeholders)}

    def _encode(self, conversations: list[list[dict[str, Any]]], faults: dict[int, Fault]) -> BatchFeature:
        try:
            return self._apply_template(conversations)
        except Exception:  # of the template or the processor, for one of the rows: which one?
            for index, conversation in enumerate(conversations):
                try:
                    self._apply_template([conversation])
                except Exception as error:
                    faults[index] = Fault("template", f"{type(error).__name__}: {error}")
                    conversations[index] = EMPTY_CONVERSATION
            return self._apply_template(conversations)

    def _apply_template(self, conversations: list[list[dict[str, Any]]]) -> BatchFeature:
        batch = self.processor.apply_chat_template(
            conversations,
            chat_template=self.chat_template,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            return_assistant_tokens_mask=True,
            processor_kwargs={
                "padding": True,
                "padding_side": "right",
                "pad_to_multiple_of": self.pad_to_multiple_of,
                "truncation": False,  # see `_truncate`: the tokenizer would cut through images
            },
        )
        for mask, conversation in zip(batch["assistant_masks"], conversations, strict=True):
            self._unmask_untrained(mask, conversation)
        return batch

    def _unmask_untrained(self, mask: torch.LongTensor, conversation: list[dict[str, Any]]) -> None:
        """Takes answers of weight 0 out of the mask (L,) of what the assistant says, in place."""
        weights = [message.get("weight", 1) for message in conversation if message["role"] == "assistant"]
        if 0 not in weights:
            return
        runs = [list(run) for is_answer, run in groupby(range(len(mask)), lambda i: bool(mask[i])) if is_answer]
        if len(runs) != len(weights):
            raise ValueError(
                f"Of {len(weights)} answers some have weight 0, and the chat template writes {len(runs)} spans: which "
                "is which?"
            )
        for run, weight in zip(runs, weights, strict=True):
            if weight == 0:
                mask[run] = 0

    def _truncate(
        self, batch: BatchFeature, conversations: list[list[dict[str, Any]]], faults: dict[int, Fault]
    ) -> list[int]:
        """Cuts the batch to `max_length`; returns which rows lost text. A row that would lose image tokens is bad."""
        if self.max_length is None or batch["input_ids"].shape[1] <= self.max_length:
            return []
        tail = batch["input_ids"][:, self.max_length :]
        lost_images = (tail == self.processor.image_token_id).any(-1).nonzero().flatten().tolist()
        for index in lost_images:
            length = int(batch["attention_mask"][index].sum())
            faults[index] = Fault(
                "too_long", f"Its {length} tokens end in an image, beyond max_length={self.max_length}."
            )
            conversations[index] = EMPTY_CONVERSATION
        if lost_images:
            batch.update(self._apply_template(conversations))
            if not any(has_images(conversation) for conversation in conversations):
                batch.pop("pixel_values")
        truncated = batch["attention_mask"][:, self.max_length :].any(-1).nonzero().flatten().tolist()
        for name, values in batch.items():
            if name != "pixel_values":
                batch[name] = values[:, : self.max_length]
        return truncated

    def _get_levels(
        self, levels: list[int | None], names: list[str], conversations: list[list[dict[str, Any]]]
    ) -> torch.LongTensor:
        checked = []
        for level, name, conversation in zip(levels, names, conversations, strict=True):
            if not has_images(conversation):  # no place for an alignment vector; a level, if it has one, means nothing
                checked.append(-1)
                continue
            is_missing = level is None or level == -1  # as tables of integers have it
            if is_missing or not 0 <= level < self.num_alignment_levels:
                raise Fault(
                    "missing_level" if is_missing else "level_out_of_range",
                    f"Row {name} has alignment level {'none' if is_missing else level}; stage 1 needs "
                    f"0..{self.num_alignment_levels - 1} in every row with an image. Score the pairs (`aligngpt "
                    "score`) and cut the scores into levels (`aligngpt levels`) first.",
                    name,
                )
            checked.append(level)
        return torch.tensor(checked)


def has_images(conversation: list[dict[str, Any]]) -> bool:
    """Whether messages have images in them."""
    return any(part["type"] == "image" for message in conversation for part in message["content"])
