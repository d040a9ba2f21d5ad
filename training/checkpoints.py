"""Where a run starts, where it goes on, and where it may write to."""

import json
from pathlib import Path

from transformers import AutoConfig, AutoProcessor
from transformers.utils import find_adapter_config_file
from trl import ModelConfig, SFTConfig, get_quantization_config

from aligngpt import AlignGPTConfig, AlignGPTForConditionalGeneration, AlignGPTProcessor
from aligngpt.training.stages import UNQUANTIZED_MODULES


def load_processor(model_args: ModelConfig) -> AlignGPTProcessor:
    """
    The processor of `model_name_or_path`.

    Raises:
        ValueError: if no checkpoint is named, or it is an adapter, or the model of another family.
    """
    name, revision = model_args.model_name_or_path, model_args.model_revision
    if name is None:
        raise ValueError("Name the checkpoint to start from: --model_name_or_path, e.g. the output folder of stage 1.")
    if find_adapter_config_file(name, revision=revision) is not None:
        # transformers would load its base as well, train that, and save the adapter alone
        raise ValueError(f"{name} is an adapter: make a model of it and its base first, by `aligngpt merge`.")
    model_type = AutoConfig.from_pretrained(name, revision=revision).model_type
    if model_type != AlignGPTConfig.model_type:
        raise ValueError(
            f"{name} is no AlignGPT, but of type {model_type!r}: `aligngpt convert` makes one of a LLaVA, `aligngpt "
            "compose` of a vision tower and a language model."
        )
    return AutoProcessor.from_pretrained(name, revision=revision)


def load_model(model_args: ModelConfig, **config_fields) -> AlignGPTForConditionalGeneration:
    """
    The model of `model_name_or_path`, which [`load_processor`] has looked at, in the precision and with the attention
    that the arguments name, with `config_fields` instead of those of its configuration. With `load_in_4bit` or
    `load_in_8bit` only the language model's blocks are quantised.
    """
    quantization_config = get_quantization_config(model_args)
    if quantization_config is not None:
        quantization_config.llm_int8_skip_modules = UNQUANTIZED_MODULES
    return AlignGPTForConditionalGeneration.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=quantization_config,
        **config_fields,
    )


def find_checkpoint(training_args: SFTConfig) -> str | None:
    """
    Where to go on: the folder that `resume_from_checkpoint` names; with `latest`, the last complete checkpoint of the
    output folder, or None if there is none yet, so that the same command starts a run and continues it.
    """
    if training_args.resume_from_checkpoint != "latest":
        return training_args.resume_from_checkpoint
    folders = Path(training_args.output_dir).glob("checkpoint-*")
    complete = [folder for folder in folders if _is_complete(folder)]
    return str(max(complete, key=lambda folder: int(folder.name.rpartition("-")[2]))) if complete else None


def _is_complete(checkpoint: Path) -> bool:
    try:  # the Trainer writes this file last; a killed run leaves none, or a cut one
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return True


def check_output_folder(folder: Path, is_adapter: bool) -> None:
    """
    Whether what the folder holds is of the kind that is to be written there: beside an adapter, a model would not be
    loaded.

    Raises:
        ValueError: if it is of the other kind.
    """
    other = folder / ("config.json" if is_adapter else "adapter_config.json")
    if other.is_file():
        kinds = ("a whole model", "an adapter") if is_adapter else ("an adapter", "a whole model")
        raise ValueError(f"{folder} holds {kinds[0]}; this run writes {kinds[1]}: name another output_dir.")
