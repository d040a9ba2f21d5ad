"""An AlignGPT from a vision tower and a language model: the start of stage 1."""

from contextlib import contextmanager

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import is_torchvision_available, logging

from aligngpt.processing import AlignGPTProcessor, load_chat_template
from aligngpt.processing.tokenization import prepare_tokenizer

from .configuration_aligngpt import AlignGPTConfig
from .modeling_aligngpt import AlignGPTForConditionalGeneration


def compose(
    vision: str,
    text: str,
    chat_template: str = "vicuna_v1",
    dtype: torch.dtype | str = "auto",
    attn_implementation: str | None = None,
    **config_fields,
) -> tuple[AlignGPTForConditionalGeneration, AlignGPTProcessor]:
    """
    A model whose tower and language model are those of two checkpoints and whose projector, alignment embeddings and
    gate are new, and its processor.

    Args:
        vision (`str`): Hub id or folder of a CLIP-like model, or of its vision tower alone.
        text (`str`): Hub id or folder of a decoder-only language model with its tokenizer.
        chat_template (`str`, *optional*, defaults to `"vicuna_v1"`): name of the packaged template that fits the
            language model. The processor also gets `plain`, stage 1's, under that name.
        dtype (`torch.dtype` or `str`, *optional*, defaults to `"auto"`): of the weights; by default the one in which
            those of the language model are stored.
        attn_implementation (`str`, *optional*): e.g. `"flash_attention_2"`.
        config_fields: fields of [`AlignGPTConfig`], e.g. `num_alignment_levels=4`.

    Returns:
        model and processor, both ready for `save_pretrained`. The new modules are drawn from torch's random state.

    Raises:
        ValueError: if the chat template is unknown, or a part has no weights for some of its parameters.
    """
    chat_templates = {"default": load_chat_template(chat_template), "plain": load_chat_template("plain")}
    vision_config = AutoConfig.from_pretrained(vision)
    vision_config = getattr(vision_config, "vision_config", vision_config)
    loading = {"attn_implementation": attn_implementation}
    language_model = _load_part(AutoModelForCausalLM, text, dtype=dtype, **loading)
    tower = _load_part(AutoModel, vision, config=vision_config, dtype=language_model.dtype, **loading)
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(text))

    config = AlignGPTConfig(
        vision_config=vision_config,
        text_config=language_model.config,
        image_token_index=tokenizer.image_token_id,
        align_token_id=tokenizer.align_token_id,
        **config_fields,
    )
    config.text_config.pad_token_id = tokenizer.pad_token_id
    with torch.device("meta"):  # the parts exist already; only the new modules get memory of their own
        model = AlignGPTForConditionalGeneration(config)
    backbone = model.model
    backbone.vision_tower, backbone.language_model = tower, language_model.get_decoder()
    model.lm_head = language_model.get_output_embeddings()
    for module in (backbone.multi_modal_projector, backbone.alignment_embeddings, backbone.alignment_gate):
        module.to_empty(device="cpu").to(language_model.dtype).apply(model._init_weights)
    with _quiet():  # new rows are drawn around the mean of the old ones, so that placeholders differ
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    model.config.dtype = language_model.dtype

    model.generation_config = language_model.generation_config
    model.generation_config.suppress_tokens = [tokenizer.image_token_id, tokenizer.align_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id

    processor = AlignGPTProcessor(
        image_processor=_make_image_processor(vision, vision_config),
        tokenizer=tokenizer,
        patch_size=vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1 if config.vision_feature_select_strategy == "default" else 0,
        chat_template=chat_templates,
    )
    return model, processor


@contextmanager
def _quiet():
    """transformers without its warnings; what matters of them is checked by the caller."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _load_part(auto_class: type, name_or_path: str, **options) -> PreTrainedModel:
    with _quiet():  # of a CLIP only the tower is wanted; the report would list the whole text model as unexpected
        part, info = auto_class.from_pretrained(name_or_path, output_loading_info=True, **options)
    if info["missing_keys"]:
        raise ValueError(f"{name_or_path} has no weights for {sorted(info['missing_keys'])} of {type(part).__name__}.")
    return part


def _make_image_processor(vision: str, vision_config: PreTrainedConfig) -> BaseImageProcessor:
    """LLaVA's image processor with the tower's size, mean and deviation; padding to a square."""
    if is_torchvision_available():
        from transformers import LlavaImageProcessor as ImageProcessor
    else:
        from transformers import LlavaImageProcessorPil as ImageProcessor
    tower_processor = AutoImageProcessor.from_pretrained(vision)
    return ImageProcessor(
        do_pad=True,
        size={"shortest_edge": vision_config.image_size},
        crop_size={"height": vision_config.image_size, "width": vision_config.image_size},
        image_mean=tower_processor.image_mean,
        image_std=tower_processor.image_std,
        resample=tower_processor.resample,
    )
