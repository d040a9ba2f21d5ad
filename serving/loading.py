"""A model to talk to, loaded as the commands ask for it: precision, bits, device, an adapter."""

from typing import TYPE_CHECKING, Any

from aligngpt.processing.command_output import Mistakes

from .arguments import ModelArguments


if TYPE_CHECKING:
    from aligngpt import AlignGPTForConditionalGeneration, AlignGPTProcessor


def load_model(arguments: ModelArguments) -> tuple["AlignGPTForConditionalGeneration", "AlignGPTProcessor"]:
    """
    Model, ready for inference, and processor.

    Raises:
        Mistakes: if the arguments contradict each other.
        ValueError: if the folder holds another kind of model, or an adapter does not fit its base.
    """
    if problems := arguments.find_problems():
        raise Mistakes(problems)
    import transformers
    from transformers import AutoConfig, AutoProcessor
    from transformers.utils.peft_utils import find_adapter_config_file

    import aligngpt
    from aligngpt import AlignGPTConfig, AlignGPTForConditionalGeneration

    transformers.logging.disable_progress_bar()
    name = arguments.model
    options: dict[str, Any] = {"dtype": arguments.dtype, "device_map": arguments.device}
    if arguments.attn_implementation is not None:
        options["attn_implementation"] = arguments.attn_implementation
    if arguments.load_in_4bit or arguments.load_in_8bit:
        options["quantization_config"] = _quantization(arguments)
    if find_adapter_config_file(name, revision=arguments.revision) is not None:
        if arguments.revision != "main":
            raise Mistakes([f"--revision {arguments.revision}: an adapter is read as it is on main; merge it first."])
        model, processor = aligngpt.load_adapter(name, **options)
        return model.eval(), processor
    config = AutoConfig.from_pretrained(name, revision=arguments.revision)
    if not isinstance(config, AlignGPTConfig):
        raise ValueError(
            f"{name} is a model of type {config.model_type!r}, no AlignGPT: aligngpt convert makes one of LLaVA-1.5 "
            "or the authors' checkpoints."
        )
    model = AlignGPTForConditionalGeneration.from_pretrained(name, revision=arguments.revision, **options)
    processor = AutoProcessor.from_pretrained(name, revision=arguments.revision)
    if processor.num_alignment_levels is None:  # saved before processors knew
        processor.num_alignment_levels = config.num_alignment_levels
    return model.eval(), processor


def _quantization(arguments: ModelArguments):
    import torch
    from transformers import BitsAndBytesConfig

    from aligngpt.training.stages import UNQUANTIZED_MODULES

    if arguments.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=UNQUANTIZED_MODULES)
    compute = torch.bfloat16 if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=UNQUANTIZED_MODULES,
    )
