"""
Makes the start of stage 1 from a vision tower and a language model:

    aligngpt compose --vision openai/clip-vit-large-patch14-336 --text lmsys/vicuna-7b-v1.5 --output_dir composed

`aligngpt pretrain` takes the folder as `--model`; it can also compose by itself.
"""

import logging
from dataclasses import dataclass, field
from typing import Literal

from aligngpt.processing.atomic_output import new_folder
from aligngpt.processing.command_line import parse_command


logger = logging.getLogger(__name__)


@dataclass
class ComposeCommandArguments:
    """The parts, and what is new between them."""

    vision: str = field(metadata={"help": "Hub id or folder of a CLIP, SigLIP, SigLIP 2 or DINOv2."})
    text: str = field(metadata={"help": "Hub id or folder of a decoder-only language model with its tokenizer."})
    output_dir: str = field(metadata={"help": "Folder of the AlignGPT; must not be there yet."})
    chat_template: str | None = field(
        default=None, metadata={"help": "Packaged template that fits the language model; told from its tokenizer."}
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = field(
        default="auto", metadata={"help": "Precision of the weights; the language model's."}
    )
    num_alignment_levels: int = field(default=8, metadata={"help": "N, the number of alignment embeddings."})
    vision_scales: list[int] | None = field(
        default=None, metadata={"help": "Multi-scale features, e.g. 1 2 for 672 pixels with a tower of 336."}
    )
    seed: int = field(default=42, metadata={"help": "The new weights are drawn from it."})
    max_shard_size: str = field(default="5GB", metadata={"help": "Size of a file of weights."})


def main(arguments: list[str]) -> None:
    """The command `aligngpt compose`."""
    args = parse_command(ComposeCommandArguments, arguments, "compose", __doc__, new_output=True)
    from transformers import set_seed

    from .composing import compose

    with new_folder(args.output_dir) as folder:
        set_seed(args.seed)
        model, processor = compose(
            args.vision,
            args.text,
            chat_template=args.chat_template,
            dtype=args.dtype,
            num_alignment_levels=args.num_alignment_levels,
            vision_scales=args.vision_scales,
        )
        model.save_pretrained(folder, max_shard_size=args.max_shard_size)
        processor.save_pretrained(folder)
    config = model.config
    logger.info(
        "%s of %s parameters and %d image tokens of %d pixels a side. New: projector, alignment embeddings, gate.",
        *(type(model).__name__, f"{model.num_parameters():,}", config.image_seq_length, config.image_size),
    )
    logger.info("Written to %s.", args.output_dir)
