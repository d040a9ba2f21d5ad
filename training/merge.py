"""A LoRA adapter on its base, as training wrote it."""

from copy import copy

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import load_peft_weights
from transformers import AutoProcessor

from aligngpt import AlignGPTForConditionalGeneration, AlignGPTProcessor
from aligngpt.training.stages import UNQUANTIZED_MODULES


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
