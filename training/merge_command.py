"""
`aligngpt merge`: a LoRA adapter, with the projector and the gate that were trained with it, and its base become one
model, which loads without peft.

    aligngpt merge aligngpt-7b-lora --output_dir aligngpt-7b

Also for adapters that were trained on a language model in 4 bits: they are folded into the full-precision base, for in
4 bits the sum would be rounded again.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from aligngpt.processing.atomic_output import new_folder
from aligngpt.processing.command_line import parse_command


logger = logging.getLogger(__name__)


@dataclass
class MergeArguments:
    """What to merge, and where to."""

    adapter: str = field(metadata={"help": "Folder or Hub id of the adapter, an output of stage 2 with LoRA."})
    output_dir: str = field(metadata={"help": "Folder to write the model to."})
    base: str | None = field(default=None, metadata={"help": "The base, if it is not where the adapter says."})
    dtype: str = field(default="auto", metadata={"help": "Precision of the merged weights; that of the base."})


def main(arguments: list[str]) -> None:
    """The command `aligngpt merge`."""
    args = parse_command(MergeArguments, arguments, "merge", __doc__, first="adapter", new_output=True)
    import torch

    from aligngpt.training.history import TrainingHistory
    from aligngpt.training.merge import load_adapter
    from aligngpt.training.model_card import write_model_card

    with new_folder(args.output_dir) as folder:
        model, processor = load_adapter(args.adapter, args.base, dtype=args.dtype)
        with torch.no_grad():
            model = model.merge_and_unload()
        # Projector and gate were trained in float32 beside a base in half precision
        model.to(model.lm_head.weight.dtype).save_pretrained(folder)
        processor.save_pretrained(folder)
        history = TrainingHistory.load(args.adapter)
        history.save(folder)
        if history.stages:
            write_model_card(folder, history, Path(args.output_dir).name)
    logger.info("Written to %s.", args.output_dir)
