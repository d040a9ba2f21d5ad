"""
Writes an AlignGPT in the format of another program. `--to llava` is a stock LLaVA, for servers that know only that:

    aligngpt export aligngpt-7b --output_dir llava-7b
    aligngpt export aligngpt-7b --output_dir llava-7b --calibration questions.json --image_folder images

The alignment vector becomes one for all images: the global embedding plus the mean of the local ones (the mode
`average`), or plus their mix by the gate's mean weights over the calibration records. What is lost is the gate: it no
longer looks at image and question. The exported chat template writes `<align>` after BOS where a chat has an image; a
prompt written by hand has to.
"""

import logging
from dataclasses import dataclass, field
from typing import Literal

from aligngpt.processing.atomic_output import new_folder
from aligngpt.processing.command_line import parse_command


logger = logging.getLogger(__name__)


@dataclass
class ExportArguments:
    """What to export, and where to."""

    model: str = field(metadata={"help": "Hub id or folder of an AlignGPT."})
    output_dir: str = field(metadata={"help": "Folder of the export; must not be there yet."})
    to: Literal["llava"] = field(default="llava", metadata={"help": "Format: a stock LLaVA of transformers."})
    calibration: str | None = field(
        default=None,
        metadata={"help": "Records over which the gate's weights are averaged: JSON, JSON Lines, parquet."},
    )
    image_folder: str | None = field(default=None, metadata={"help": "Folder that their image paths start from."})
    num_records: int = field(default=256, metadata={"help": "How many records to take at most."})
    max_shard_size: str = field(default="5GB", metadata={"help": "Size of a file of weights."})


def main(arguments: list[str]) -> None:
    """The command `aligngpt export`."""
    args = parse_command(ExportArguments, arguments, "export", __doc__, first="model", new_output=True)
    from transformers import AutoProcessor

    from aligngpt import AlignGPTForConditionalGeneration
    from aligngpt.processing.corpus.sources import open_corpus

    from .exporting import export_llava, mean_gate_weights

    with new_folder(args.output_dir) as folder:
        model = AlignGPTForConditionalGeneration.from_pretrained(args.model).eval()
        processor = AutoProcessor.from_pretrained(args.model)
        weights = None
        if args.calibration is not None:
            shards = open_corpus(args.calibration, streaming=True)
            records = (record for shard in shards for record in shard.read(0))
            weights = mean_gate_weights(model, processor, records, args.num_records, args.image_folder)
        llava, processor = export_llava(model, processor, weights)
        llava.save_pretrained(folder, max_shard_size=args.max_shard_size)
        processor.save_pretrained(folder)
    shown = "equal" if weights is None else " ".join(f"{weight:.3f}" for weight in weights.tolist())
    logger.info("Weights of the local alignment embeddings: %s.", shown)
    logger.info("Written to %s.", args.output_dir)
