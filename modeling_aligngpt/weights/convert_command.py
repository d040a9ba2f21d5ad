"""
Checkpoints of others become AlignGPT:

    aligngpt convert authors/AlignGPT-7b --output_dir aligngpt-7b
    aligngpt convert authors/AlignGPT-7b --vision clip --output_dir aligngpt-7b
    aligngpt convert pretrain/mm_projector_align.bin --base composed --output_dir stage1
    aligngpt convert llava-hf/llava-1.5-7b-hf --output_dir aligngpt-start

These are the authors' format, the same with the tower from elsewhere, the authors' stage-1 file, and LLaVA-1.5 as a
start of stage 1.

Every weight is accounted for: used, left aside for a reason, or new. Anything else is an error, and the output folder
is there whole or not at all.
"""

import logging
from dataclasses import dataclass, field

from aligngpt.processing.atomic_output import new_folder
from aligngpt.processing.command_line import parse_command


logger = logging.getLogger(__name__)


@dataclass
class ConvertArguments:
    """What to convert, and where to."""

    model: str = field(metadata={"help": "Hub id or folder of a checkpoint, or a stage-1 file."})
    output_dir: str = field(metadata={"help": "Folder of the AlignGPT; must not be there yet."})
    vision: str | None = field(default=None, metadata={"help": "The tower, if not what the checkpoint names."})
    base: str | None = field(default=None, metadata={"help": "For a stage-1 file: the composed AlignGPT."})
    max_shard_size: str = field(default="5GB", metadata={"help": "Size of a file of weights."})


def main(arguments: list[str]) -> None:
    """The command `aligngpt convert`."""
    args = parse_command(ConvertArguments, arguments, "convert", __doc__, first="model", new_output=True)
    from .converting import convert

    with new_folder(args.output_dir) as folder:
        conversion = convert(args.model, args.vision, args.base)
        conversion.model.save_pretrained(folder, max_shard_size=args.max_shard_size)
        conversion.processor.save_pretrained(folder)
    logger.info("Weights used: %d. New: %d%s.", len(conversion.used), len(conversion.new), _some(conversion.new))
    for reason in sorted(set(conversion.left_aside.values())):
        names = [name for name, why in conversion.left_aside.items() if why == reason]
        logger.info("Left aside, %s: %d%s.", reason, len(names), _some(names))
    logger.info("Written to %s.", args.output_dir)


def _some(names: list[str]) -> str:
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
