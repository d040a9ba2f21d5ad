"""
Writes the model card of a training run's output anew, for instance when there are results in `.eval_results/*.yaml`:

    aligngpt card aligngpt-7b
    aligngpt card aligngpt-7b --hub_model_id you/aligngpt-7b --output_file card.md
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from aligngpt.processing.command_line import parse_command


logger = logging.getLogger(__name__)


@dataclass
class CardArguments:
    """Whose card to write."""

    model: str = field(metadata={"help": "Output folder of a training stage, or of `aligngpt merge`."})
    hub_model_id: str | None = field(default=None, metadata={"help": "Repository that the card's snippet loads."})
    output_file: str | None = field(default=None, metadata={"help": "File to write to; README.md of the folder."})


def main(arguments: list[str]) -> None:
    """The command `aligngpt card`."""
    args = parse_command(CardArguments, arguments, "card", __doc__, first="model")
    from aligngpt.training.history import HISTORY_FILE, TrainingHistory
    from aligngpt.training.model_card import write_model_card

    history = TrainingHistory.load(args.model)
    if not history.stages:
        raise ValueError(f"{args.model} has no {HISTORY_FILE}, which aligngpt's training writes.")
    write_model_card(args.model, history, args.hub_model_id, args.output_file)
    logger.info("Written to %s.", args.output_file or Path(args.model, "README.md"))
