"""
`aligngpt inspect`: what a row of training data becomes, token by token: what is trained, what the gate reads, how many
tokens an image takes, and the level.

    aligngpt inspect --model aligngpt-7b-pretrain --data llava_v1_5_mix665k.json --image_folder images --id 33471
"""

import sys
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Literal

from rich.console import Console
from rich.text import Text
from transformers import AutoProcessor

from aligngpt.processing import AlignGPTProcessor
from aligngpt.processing.chat_templates import is_interleaved
from aligngpt.processing.command_line import parse_command
from aligngpt.training.collator import AlignGPTDataCollator
from aligngpt.training.data import load_training_data


STYLES = {"trained": "bold green", "read by the gate": "cyan", "placeholder": "bold magenta", "other": "dim"}


@dataclass
class InspectArguments:
    """Which rows to show."""

    model: str = field(metadata={"help": "Folder or Hub id of the model, for its processor."})
    data: str = field(metadata={"help": "As train_file of the training scripts."})
    image_folder: str | None = field(default=None, metadata={"help": "Folder that relative image paths start from."})
    stage: Literal["pretrain", "sft"] = field(default="sft", metadata={"help": "Whose format to show."})
    row: int = field(default=0, metadata={"help": "Number of the first row to show."})
    num_rows: int = field(default=1, metadata={"help": "How many rows to show."})
    id: str | None = field(default=None, metadata={"help": "Show the row of this id instead."})
    max_length: int | None = field(default=2048, metadata={"help": "As in training."})
    out: str | None = field(default=None, metadata={"help": "HTML file to write as well."})


def render_row(processor: AlignGPTProcessor, batch: dict, level: int) -> Text:
    """One collated row as text: a line of numbers, then its tokens by what becomes of them, trained ones in [[ ]]."""
    ids, labels, types = (batch[name][0].tolist() for name in ("input_ids", "labels", "token_type_ids"))
    placeholders = (processor.image_token_id, processor.align_token_id)
    kinds = [
        "trained"
        if label != -100
        else "placeholder"
        if token in placeholders
        else "read by the gate"
        if kind
        else "other"
        for token, label, kind in zip(ids, labels, types, strict=True)
    ]
    num_images = ids.count(processor.image_token_id)
    text = Text(
        f"row {batch['row_ids'][0]}: {len(ids)} tokens, {num_images} of images, {kinds.count('trained')} trained, "
        f"{kinds.count('read by the gate')} read by the gate, level {level if level >= 0 else 'not given'}"
        + (", cut at max_length" if batch["truncated_rows"] else "")
        + "\n"
    )
    end = 0
    for (kind, token), run in groupby(zip(kinds, (id if id in placeholders else None for id in ids), strict=True)):
        start, end = end, end + len(list(run))
        if token is None:  # as a difference: a piece decoded alone would lose the space before it
            shown = processor.decode(ids[:end])[len(processor.decode(ids[:start])) :]
        else:
            shown = processor.tokenizer.convert_ids_to_tokens(token) + (f"x{end - start}" if end - start > 1 else "")
        text.append(f"[[{shown}]]" if kind == "trained" else shown, STYLES[kind])
    return text


def main(arguments: list[str]) -> None:
    """The command `aligngpt inspect`."""
    args = parse_command(InspectArguments, arguments, "inspect", __doc__)
    processor = AutoProcessor.from_pretrained(args.model)
    processor.image_processor.do_pad = args.stage == "sft"
    collator = AlignGPTDataCollator(
        processor,
        max_length=args.max_length,
        chat_template="plain" if args.stage == "pretrain" else None,
        image_folder=args.image_folder,
    )
    is_placed = is_interleaved(processor.chat_template)
    rows = iter(load_training_data(args.data, streaming=True, interleaved=is_placed))  # no copy for a look at it
    rows = (row for row in rows if row["id"] == args.id) if args.id is not None else islice(rows, args.row, None)
    console, shown = Console(record=True, highlight=False), 0
    console.print(*(Text(f" {kind} ", style) for kind, style in STYLES.items()))
    for shown, row in enumerate(islice(rows, args.num_rows), start=1):
        console.print(render_row(processor, collator([row]), row["alignment_level"]), soft_wrap=True)
    if not shown:
        sys.exit(f"aligngpt inspect: {args.data} has no row {args.row if args.id is None else args.id}.")
    if args.out is not None:
        console.save_html(args.out)
