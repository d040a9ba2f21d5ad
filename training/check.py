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
from aligngpt.processing.corpus.faults import Fault
from aligngpt.processing.corpus.images import ImageFolderNeededError
from aligngpt.training.arguments import DataArguments, StageConfig
from aligngpt.training.collator import AlignGPTDataCollator
from aligngpt.training.data import load_training_data
from aligngpt.training.row_counts import explain_missing_pictures


logger = logging.get_logger(__name__)

REPORT_FILE = "data_check.json"
ROWS_PER_BATCH = 16
COUNTS = ("rows", "rows_with_images", "images", "text_only_rows", "tokens", "labels")


@dataclass(frozen=True)
class Examination:
    """What was found in a row: what it holds, and why it cannot be trained on, or not as it is."""

    num_images: int
    level: int
    notes: list[str]
    num_tokens: int = 0
    num_labels: int = 0
    fault: Fault | None = None


@dataclass
class RowExaminer:
    """Collates rows one by one, in a worker; of each, what was found."""

    collator: AlignGPTDataCollator

    def __call__(self, rows: list[dict[str, Any]]) -> list[Examination]:
        torch.set_num_threads(1)
        return [self._examine(row) for row in rows]

    def _examine(self, row: dict[str, Any]) -> Examination:
        found = Examination(row["num_images"], row["alignment_level"], row["notes"])
        try:
            batch = replace(self.collator, on_bad_row="skip")([row])
        except ImageFolderNeededError:
            raise  # the command is at fault, not the row
        except Fault as fault:
            return replace(found, fault=fault)
        if batch["skipped_rows"]:
            return replace(found, fault=batch["skipped_rows"][0])
        num_tokens, num_labels = int(batch["attention_mask"].sum()), int((batch["labels"] != -100).sum())
        found = replace(found, num_tokens=num_tokens, num_labels=num_labels)
        if batch["rows_without_target"]:
            message = "No token is trained on: there is no assistant turn, or it is cut off."
            return replace(found, fault=Fault("no_target", message, row["id"]))
        if batch["truncated_rows"]:
            message = f"It is cut at {self.collator.max_length} tokens, the rest is trained on."
            return replace(found, fault=Fault("too_long", message, row["id"]))
        return found


def check_data(data_args: DataArguments, training_args: StageConfig, collator: AlignGPTDataCollator) -> int:
    """
    Goes through the data once, in `dataloader_num_workers` workers, and writes `data_check.json` into the output
    folder: how many rows, images, levels, tokens and labels there are, and every row that cannot be trained on, or
    not as it is, with the reason. Returns the exit code: 1 if there is such a row, or no picture where some are
    needed.
    """
    dataset = load_training_data(data_args.data, **data_args.reading_options(), on_bad_row="keep")
    loader = DataLoader(
        dataset,
        batch_size=ROWS_PER_BATCH,
        collate_fn=RowExaminer(collator),
        num_workers=training_args.dataloader_num_workers,
    )
    faults, totals, levels, notes, longest = [], Counter(), Counter(), Counter(), 0
    for row in (row for batch in tqdm(loader, desc="Checking the data") for row in batch):
        totals.update(rows=1, tokens=row.num_tokens, labels=row.num_labels, pictures_told=row.num_images)
        longest = max(longest, row.num_tokens)
        notes.update(row.notes)
        if row.fault is not None:
            faults.append({"id": row.fault.id, "kind": row.fault.kind, "message": str(row.fault)})
            if row.num_tokens == 0:
                continue
        totals.update({"images": row.num_images, "rows_with_images" if row.num_images else "text_only_rows": 1})
        if row.num_images:
            levels["none" if row.level == -1 else row.level] += 1
    kinds = dict(Counter(fault["kind"] for fault in faults))
    needs_images = collator.num_alignment_levels is not None
    needed = None if totals["pictures_told"] else explain_missing_pictures(data_args, needs_images)
    problems = [] if needed is None else [needed]
    report = {name: totals[name] for name in COUNTS} | {
        "longest_row": longest,
        "levels": {str(level): levels[level] for level in sorted(levels, key=str)},
        "notes": dict(notes),
        "problems": problems,
        "kinds": kinds,
        "faults": faults,
    }
    Path(training_args.output_dir).mkdir(parents=True, exist_ok=True)
    write_json(Path(training_args.output_dir, REPORT_FILE), report)
    logger.warning(
        "{rows} rows, {rows_with_images} with pictures ({images} of them), {text_only_rows} text-only, {labels} of "
        "{tokens} tokens trained on".format(**report)
        + f", longest row {longest}. Levels: {report['levels'] or 'none'}. "
        + (f"{dict(notes)}. " if notes else "")
        + "".join(f"{problem} " for problem in problems)
        + (f"To mend: {kinds}" if faults else "" if problems else "Nothing to mend")
        + f"; see {Path(training_args.output_dir, REPORT_FILE)}."
    )
    return 1 if faults or problems else 0
