"""A look at all training data before training: every row goes through the collator once."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers.utils import logging

from aligngpt.processing.atomic_output import write_json
from aligngpt.processing.corpus.images import ImageFolderNeededError
from aligngpt.training.arguments import DataArguments, StageConfig
from aligngpt.training.collator import AlignGPTDataCollator
from aligngpt.training.data import load_training_data


logger = logging.get_logger(__name__)

REPORT_FILE = "data_check.json"
ROWS_PER_BATCH = 16


@dataclass
class RowExaminer:
    """Collates rows one by one, in a worker: `(id, kind of fault, message, number of tokens, of labels)` of each."""

    collator: AlignGPTDataCollator

    def __call__(self, rows: list[dict[str, Any]]) -> list[tuple[str, str | None, str, int, int]]:
        torch.set_num_threads(1)
        return [self._examine(row) for row in rows]

    def _examine(self, row: dict[str, Any]) -> tuple[str, str | None, str, int, int]:
        name = row["id"]
        try:
            batch = replace(self.collator, on_bad_row="skip")([row])
        except ImageFolderNeededError:
            raise  # the command is at fault, not the row
        except ValueError as error:
            return name, "alignment_level", str(error), 0, 0
        if batch["skipped_rows"]:
            kind, _, message = batch["skipped_rows"][0].removeprefix(f"{name}: ").partition(": ")
            return name, kind, message, 0, 0
        kind, message = None, ""
        if batch["rows_without_target"]:
            kind, message = "no_target", "No token is trained on: there is no assistant turn, or it is cut off."
        elif batch["truncated_rows"]:
            kind, message = "too_long", f"It is cut at {self.collator.max_length} tokens, the rest is trained on."
        return name, kind, message, int(batch["attention_mask"].sum()), int((batch["labels"] != -100).sum())


def check_data(data_args: DataArguments, training_args: StageConfig, collator: AlignGPTDataCollator) -> int:
    """
    Goes through the data once, in `dataloader_num_workers` workers, and writes `data_check.json` into the output
    folder: how many rows, tokens and labels there are, and every row that cannot be trained on, or not as it is, with
    the reason. Returns the exit code: 1 if there is such a row.
    """
    dataset = load_training_data(
        data_args.train_file,
        split=data_args.train_split,
        config_name=data_args.dataset_config,
        streaming=data_args.streaming,
        on_bad_row="keep",
    )
    loader = DataLoader(
        dataset,
        batch_size=ROWS_PER_BATCH,
        collate_fn=RowExaminer(collator),
        num_workers=training_args.dataloader_num_workers,
    )
    faults, totals, longest = [], Counter(), 0
    for batch in tqdm(loader, desc="Checking the data"):
        for name, kind, message, num_tokens, num_labels in batch:
            totals.update(rows=1, tokens=num_tokens, labels=num_labels)
            longest = max(longest, num_tokens)
            if kind is not None:
                faults.append({"id": name, "kind": kind, "message": message})
    kinds = dict(Counter(fault["kind"] for fault in faults))
    report = {**totals, "longest_row": longest, "kinds": kinds, "faults": faults}
    Path(training_args.output_dir).mkdir(parents=True, exist_ok=True)
    write_json(Path(training_args.output_dir, REPORT_FILE), report)
    logger.warning(
        f"{totals['rows']} rows, {totals['labels']} of {totals['tokens']} tokens trained on, longest row {longest}. "
        + (f"To mend: {kinds}" if faults else "Nothing to mend")
        + f"; see {Path(training_args.output_dir, REPORT_FILE)}."
    )
    return 1 if faults else 0
