"""
`aligngpt merge`: a LoRA adapter, with the projector and the gate that were trained with it, and its base become one
model, which loads without peft.

    aligngpt merge aligngpt-7b-lora --out aligngpt-7b

Also for adapters that were trained on a language model in 4 bits: they are folded into the full-precision base, for in
4 bits the sum would be rounded again.
"""

import logging
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import load_peft_weights
from transformers import AutoProcessor

from aligngpt import AlignGPTForConditionalGeneration, AlignGPTProcessor
from aligngpt.processing.atomic_output import new_folder
from aligngpt.processing.command_line import parse_command
from aligngpt.training.model_card import StageRecord, write_model_card
from aligngpt.training.stages import UNQUANTIZED_MODULES


logger = logging.getLogger(__name__)


@dataclass
class MergeArguments:
    """What to merge, and where to."""

    adapter: str = field(metadata={"help": "Folder or Hub id of the adapter, an output of stage 2 with LoRA."})
    out: str = field(metadata={"help": "Folder to write the model to."})
    base: str | None = field(default=None, metadata={"help": "The base, if it is not where the adapter says."})
    dtype: str = field(default="auto", metadata={"help": "Precision of the merged weights; that of the base."})


def load_adapter(adapter: str, base: str | None = None, **options) -> tuple[PeftModel, AlignGPTProcessor]:
    """
    An adapter on its base, and the processor it was trained with.

    Args:
        adapter (`str`): folder or Hub id.
        base (`str`, *optional*): folder or Hub id of the base, if it is not where the adapter says.
        options: of `from_pretrained`, for the base; e.g. `quantization_config` to serve a base in 4 bits, where only
            the language model's blocks are quantised, as in training.

    Raises:
        ValueError: if the adapter has weights for which the base has no place, or the other way round: it would load,
            and do nothing.
    """
    config = PeftConfig.from_pretrained(adapter)
    if getattr(options.get("quantization_config"), "llm_int8_skip_modules", ()) is None:
        options["quantization_config"] = copy(options["quantization_config"])
        options["quantization_config"].llm_int8_skip_modules = UNQUANTIZED_MODULES
    model = AlignGPTForConditionalGeneration.from_pretrained(base or config.base_model_name_or_path, **options)
    # All in the precision of the base: nobody has to ask for autocast
    model = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
    stored = load_peft_weights(adapter, device="cpu").keys()
    differing = stored ^ get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    if differing:
        raise ValueError(f"The adapter {adapter} does not fit its base: weights of one side only: {sorted(differing)}")
    return model, AutoProcessor.from_pretrained(adapter)


def main(arguments: list[str]) -> None:
    """The command `aligngpt merge`."""
    args = parse_command(MergeArguments, arguments, "merge", __doc__, first="--adapter")
    with new_folder(args.out) as folder:
        model, processor = load_adapter(args.adapter, args.base, dtype=args.dtype)
        with torch.no_grad():
            model = model.merge_and_unload()
        # Projector and gate were trained in float32 beside a base in half precision
        model.to(model.lm_head.weight.dtype).save_pretrained(folder)
        processor.save_pretrained(folder)
        record = StageRecord.load(args.adapter)
        record.save(folder)
        if record.stages:
            write_model_card(folder, record, Path(args.out).name)
    logger.info("Written to %s.", args.out)
