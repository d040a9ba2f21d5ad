"""
`aligngpt inspect`: what a row of training data becomes, token by token: what is trained, what the gate reads, how many
tokens an image takes, and the level.

    aligngpt inspect aligngpt-7b-pretrain --data llava_v1_5_mix665k.json --image_folder images --id 33471
"""

import logging
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from aligngpt.processing.command_line import parse_command


logger = logging.getLogger(__name__)


@dataclass
class InspectArguments:
    """Which rows to show."""

    model: str = field(metadata={"help": "Folder or Hub id of the model, for its processor."})
    data: str = field(metadata={"help": "As of `aligngpt pretrain` and `aligngpt sft`."})
    image_folder: str | None = field(default=None, metadata={"help": "Folder that relative image paths start from."})
    stage: Literal["pretrain", "sft"] = field(default="sft", metadata={"help": "Whose format to show."})
    row: int = field(default=0, metadata={"help": "Number of the first row to show."})
    num_rows: int = field(default=1, metadata={"help": "How many rows to show."})
    id: str | None = field(default=None, metadata={"help": "Show the row of this id instead."})
    max_length: int | None = field(default=2048, metadata={"help": "As in training."})
    output_file: str | None = field(default=None, metadata={"help": "HTML file to write as well."})


def main(arguments: list[str]) -> None:
    """The command `aligngpt inspect`."""
    args = parse_command(InspectArguments, arguments, "inspect", __doc__, first="model")
    from rich.console import Console
    from rich.text import Text
    from transformers import AutoProcessor

    from aligngpt.processing.chat_templates import is_interleaved
    from aligngpt.training.data import load_training_data
    from aligngpt.training.stages import make_collator

    from .inspection import STYLES, render_row

    processor = AutoProcessor.from_pretrained(args.model)
    collator = make_collator(args.stage, processor, max_length=args.max_length, image_folder=args.image_folder)
    is_placed = is_interleaved(processor.chat_template)
    rows = iter(load_training_data(args.data, streaming=True, interleaved=is_placed))  # no copy for a look at it
    rows = (row for row in rows if row["id"] == args.id) if args.id is not None else islice(rows, args.row, None)
    console, shown = Console(record=True, highlight=False), 0
    console.print(*(Text(f" {kind} ", style) for kind, style in STYLES.items()))
    for shown, row in enumerate(islice(rows, args.num_rows), start=1):
        console.print(render_row(processor, collator([row]), row["alignment_level"]), soft_wrap=True)
    if not shown:
        raise ValueError(f"{args.data} has no row {args.row if args.id is None else args.id}.")
    if args.output_file is not None:
        console.save_html(args.output_file)
        logger.info("Written to %s.", args.output_file)
