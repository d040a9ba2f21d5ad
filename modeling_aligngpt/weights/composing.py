"""An AlignGPT from a vision tower and a language model: the start of stage 1."""

import os
from contextlib import contextmanager

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import is_torchvision_available, logging

from aligngpt import AlignGPTConfig, AlignGPTForConditionalGeneration
from aligngpt.processing import AlignGPTProcessor, load_chat_template
from aligngpt.processing.tokenization import prepare_tokenizer


# What ends an assistant's turn in each packaged template, where that is not the tokenizer's own end token
END_OF_TURN = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "phi3": "<|end|>"}


def compose(
    vision: str,
    text: str,
    chat_template: str | None = None,
    dtype: torch.dtype | str = "auto",
    attn_implementation: str | None = None,
    **config_fields,
) -> tuple[AlignGPTForConditionalGeneration, AlignGPTProcessor]:
    """
    A model whose tower and language model are those of two checkpoints and whose projector, alignment embeddings and
    gate are new, and its processor.

    Args:
        vision (`str`): Hub id or folder of a CLIP, SigLIP, SigLIP 2 or DINOv2, or of such a tower alone.
        text (`str`): Hub id or folder of a decoder-only language model with its tokenizer.
        chat_template (`str`, *optional*): name of the packaged template that fits the language model; by default told
            from the tokenizer's tokens (see [`choose_chat_template`]). The processor also gets `plain`, stage 1's,
            under that name.
        dtype (`torch.dtype` or `str`, *optional*, defaults to `"auto"`): of the weights; by default the one in which
            those of the language model are stored.
        attn_implementation (`str`, *optional*): e.g. `"flash_attention_2"`.
        config_fields: fields of [`AlignGPTConfig`], e.g. `num_alignment_levels=4`.

    Returns:
        model and processor, both ready for `save_pretrained`. The new modules are drawn from torch's random state.

    Raises:
        ValueError: if the chat template is unknown, `text` is an AlignGPT, a part has no weights for some of its
            parameters, or the language model makes its logits in a way that AlignGPT's head does not.
    """
    if chat_template is not None:
        load_chat_template(chat_template)  # before minutes of loading
    text_config = AutoConfig.from_pretrained(text)
    if text_config.model_type == AlignGPTConfig.model_type:
        raise ValueError(f"{text} is an AlignGPT, and no language model: name the one that it was made from.")
    if type(text_config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not hasattr(text_config, "auto_map"):
        raise ValueError(f"{text} is of type {text_config.model_type}, which is no decoder-only language model.")
    try:
        tower_processor = load_tower_processor(vision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{vision} has no image processor: it is no vision tower, or its folder is not whole."
        ) from error
    loading = {"attn_implementation": attn_implementation}
    language_model = _load_part(AutoModelForCausalLM, text, dtype=dtype, **loading)
    tower = load_tower(vision, dtype=language_model.dtype, **loading)
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(text))
    return assemble(language_model, tower, tokenizer, tower_processor, chat_template, **config_fields)


def load_tower(vision: str, **options) -> PreTrainedModel:
    """
    The vision tower of a checkpoint.

    Raises:
        ValueError: if the checkpoint has no weights for some of its parameters.
    """
    config = AutoConfig.from_pretrained(vision)
    return _load_part(AutoModel, vision, config=getattr(config, "vision_config", config), **options)


def choose_chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The packaged template whose end-of-turn token a tokenizer has; Mistral's by `[INST]`, else Vicuna's."""
    vocabulary = tokenizer.get_vocab()
    for name, token in END_OF_TURN.items():
        if token in vocabulary:
            return name
    return "mistral" if "[INST]" in vocabulary else "vicuna_v1"


def assemble(
    language_model: PreTrainedModel,
    tower: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tower_processor: BaseImageProcessor,
    chat_template: str | None = None,
    **config_fields,
) -> tuple[AlignGPTForConditionalGeneration, AlignGPTProcessor]:
    """
    Model and processor from parts in memory, which they take over. Arguments and errors as in [`compose`]; the
    tokenizer is a prepared one.
    """
    chat_template = chat_template or choose_chat_template(tokenizer)
    head = language_model.get_output_embeddings()
    probe = torch.arange(min(8, head.weight.shape[0]), device=head.weight.device)[None]
    with torch.no_grad():
        expected = language_model.eval()(input_ids=probe).logits

    for part in (tower.config, language_model.config):
        if os.path.isdir(part.name_or_path):  # a Hub id says where a part came from, a path only whose machine it was
            part.name_or_path = ""
    config = AlignGPTConfig(
        vision_config=tower.config,
        text_config=language_model.config,
        image_token_index=tokenizer.image_token_id,
        align_token_id=tokenizer.align_token_id,
        lm_head_bias=head.bias is not None,
        **{"vision_feature_select_strategy": _choose_select_strategy(tower)} | config_fields,
    )
    with torch.device("meta"):  # the parts exist already; only the new modules get memory of their own
        model = AlignGPTForConditionalGeneration(config).eval()
    backbone = model.model
    backbone.vision_tower, backbone.language_model = tower, language_model.get_decoder()
    model.lm_head = head
    for module in (backbone.multi_modal_projector, backbone.alignment_embeddings, backbone.alignment_gate):
        module.to_empty(device="cpu").to(language_model.dtype).apply(model._init_weights)
    add_token_rows(model, tokenizer)
    model.config.dtype = language_model.dtype
    # Not before the embeddings have that row
    model.config.text_config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        logits = model(input_ids=probe).logits[..., : expected.shape[-1]]
    if not torch.allclose(logits.float(), expected.float(), rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"With the head of {type(language_model).__name__}, AlignGPT's logits differ from its own by up to "
            f"{(logits - expected).abs().max():.3g}: it does more to them than AlignGPT knows."
        )

    model.generation_config = language_model.generation_config
    settle_generation(model, tokenizer, chat_template)
    return model, make_processor(config, tokenizer, tower_processor, chat_template)


def _choose_select_strategy(tower: PreTrainedModel) -> str:
    """`"default"` for a tower with tokens before its patches, as the embeddings of a CLIP or DINOv2 have."""
    names = ("class_embedding", "cls_token")
    return "default" if any(name.endswith(names) for name, _ in tower.named_parameters()) else "full"


def add_token_rows(model: AlignGPTForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Rows of the embeddings for the tokenizer's new tokens, up to a multiple of 64; no row is taken away. Those of
    padding are copies of one row, by which [`~AlignGPTForConditionalGeneration.get_suppressed_tokens`] knows them.
    """
    old_size = len(model.get_input_embeddings().weight)
    with quiet():  # new rows are drawn around the mean of the old ones, so that placeholders differ
        model.resize_token_embeddings(max(len(tokenizer), old_size), pad_to_multiple_of=64)
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        padding = table.weight.data[max(len(tokenizer), old_size) :]
        padding.copy_(padding[-1:].clone().expand_as(padding))
    weight = model.get_input_embeddings().weight.data
    image, align = tokenizer.image_token_id, tokenizer.align_token_id
    if torch.equal(weight[image], weight[align]):
        # Rows that were padding may be equal; without ids, placeholders are told apart by their rows
        weight[align] = torch.randn_like(weight[align], dtype=torch.float32).to(weight) * weight.float().std()


def settle_generation(
    model: AlignGPTForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str,
) -> None:
    """
    Sees to it that answers end where the chat template says that they end, and captions at their newline, by itself or
    as the end of another token (LLaMA-3 and Qwen have one for a full stop and a newline), and that the settings can be
    saved.
    """
    config = model.generation_config
    config.pad_token_id = tokenizer.pad_token_id
    eos = config.eos_token_id
    eos = [tokenizer.eos_token_id] if eos is None else [eos] if isinstance(eos, int) else eos
    end_token_id = tokenizer.get_vocab().get(END_OF_TURN.get(chat_template))
    eos = eos if end_token_id is None or end_token_id in eos else [*eos, end_token_id]
    config.eos_token_id = eos if len(eos) > 1 else eos[0]
    texts = tokenizer.batch_decode([[token_id] for token_id in range(len(tokenizer))])
    config._from_model_config = False  # else loading drops what transformers has no default for
    config.caption_eos_token_id = [token_id for token_id, text in enumerate(texts) if text.endswith("\n")]
    if not config.do_sample:
        # Vicuna's settings have a temperature without sampling, which has no effect, and which transformers refuses to
        # save: at the end of a training run
        config.temperature = config.top_p = config.top_k = None


def make_processor(
    config: AlignGPTConfig,
    tokenizer: PreTrainedTokenizerBase,
    tower_processor: BaseImageProcessor,
    chat_template: str,
) -> AlignGPTProcessor:
    """
    LLaVA's image processor with the tower's size, mean and deviation, padding to a square; the tokenizer; and the
    packaged templates, the named one and stage 1's.
    """
    if is_torchvision_available():
        from transformers import LlavaImageProcessor as ImageProcessor
    else:
        from transformers import LlavaImageProcessorPil as ImageProcessor
    image_processor = ImageProcessor(
        do_pad=True,
        size={"shortest_edge": config.image_size},
        crop_size={"height": config.image_size, "width": config.image_size},
        image_mean=tower_processor.image_mean,
        image_std=tower_processor.image_std,
        resample=tower_processor.resample,
    )
    drops_first = config.vision_feature_select_strategy == "default"
    return AlignGPTProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        # All scales are pooled to the tower's grid: a token stands for so many pixels
        patch_size=config.vision_config.patch_size * max(config.vision_scales or [1]),
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1 if drops_first else 0,
        num_alignment_levels=config.num_alignment_levels,
        chat_template={"default": load_chat_template(chat_template), "plain": load_chat_template("plain")},
    )


@contextmanager
def quiet():
    """transformers without its warnings; what matters of them is checked by the caller."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _load_part(auto_class: type, name_or_path: str, **options) -> PreTrainedModel:
    with quiet():  # of a CLIP only the tower is wanted; the report would list the whole text model as unexpected
        part, info = auto_class.from_pretrained(name_or_path, output_loading_info=True, **options)
    if info["missing_keys"]:
        raise ValueError(f"{name_or_path} has no weights for {sorted(info['missing_keys'])} of {type(part).__name__}.")
    return part


def load_tower_processor(vision: str) -> BaseImageProcessor:
    """The image processor of a tower's checkpoint, of which size, mean and deviation are taken."""
    return AutoImageProcessor.from_pretrained(vision, backend="pil")
