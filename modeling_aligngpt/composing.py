"""An AlignGPT from a vision tower and a language model: the start of stage 1."""

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaImageProcessor,
    LlavaImageProcessorPil,
)
from transformers.utils import is_torchvision_available

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
        dtype (`torch.dtype` or `str`, *optional*, defaults to `"auto"`): of the weights; as stored by default.
        attn_implementation (`str`, *optional*): e.g. `"flash_attention_2"`.
        config_fields: fields of [`AlignGPTConfig`], e.g. `num_alignment_levels=4`.

    Returns:
        model and processor, both ready for `save_pretrained`. The new modules are drawn from torch's random state.

    Raises:
        ValueError: if the chat template is unknown.
    """
    chat_templates = {"default": load_chat_template(chat_template), "plain": load_chat_template("plain")}
    vision_config = AutoConfig.from_pretrained(vision)
    vision_config = getattr(vision_config, "vision_config", vision_config)
    tower = AutoModel.from_pretrained(
        vision, config=vision_config, dtype=dtype, attn_implementation=attn_implementation
    )
    language_model = AutoModelForCausalLM.from_pretrained(text, dtype=dtype, attn_implementation=attn_implementation)
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
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    model.config.dtype = language_model.dtype

    model.generation_config = language_model.generation_config
    model.generation_config.suppress_tokens = [tokenizer.image_token_id, tokenizer.align_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id

    tower_processor = AutoImageProcessor.from_pretrained(vision, use_fast=False)
    size = {"height": vision_config.image_size, "width": vision_config.image_size}
    image_processor_class = LlavaImageProcessor if is_torchvision_available() else LlavaImageProcessorPil
    processor = AlignGPTProcessor(
        image_processor=image_processor_class(
            do_pad=True,
            size={"shortest_edge": vision_config.image_size},
            crop_size=size,
            image_mean=tower_processor.image_mean,
            image_std=tower_processor.image_std,
            resample=tower_processor.resample,
        ),
        tokenizer=tokenizer,
        patch_size=vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1 if config.vision_feature_select_strategy == "default" else 0,
        chat_template=chat_templates,
    )
    return model, processor
