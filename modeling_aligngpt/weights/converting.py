"""
Checkpoints of others become AlignGPT: the authors', their stage-1 file, and LLaVA-1.5; `aligngpt convert` in Python.

Every weight is accounted for: used, left aside for a reason, or new. Anything else is an error. Source of the authors'
names and behaviour: their released code.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    LlavaConfig,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from aligngpt import AlignGPTConfig, AlignGPTForConditionalGeneration
from aligngpt.processing import AlignGPTProcessor
from aligngpt.processing.tokenization import prepare_tokenizer

from .checkpoint_files import read_state_dict
from .composing import (
    add_token_rows,
    assemble,
    choose_chat_template,
    load_tower,
    load_tower_processor,
    make_processor,
    quiet,
    settle_generation,
)


# The authors' names of the parts that AlignGPT adds to a language model, and ours
AUTHORS_MODULES = {
    r"mm_projector\.0\.(weight|bias)": r"multi_modal_projector.linear_1.\1",
    r"mm_projector\.2\.(weight|bias)": r"multi_modal_projector.linear_2.\1",
    r"align_indicators\.indicator_embs": "alignment_embeddings.weight",
    r"gated_weight_layer\.mlp\.0\.(weight|bias)": r"alignment_gate.linear_1.\1",
    r"gated_weight_layer\.mlp\.2\.(weight|bias)": r"alignment_gate.linear_2.\1",
}
LEFT_ASIDE = {
    r"(model\.)?vision_tower\..*": "the tower is read from its own checkpoint, as the authors' code does",
    r".*rotary_emb\.inv_freq": "computed, not learnt",
}
STAGE_1_FILE = "mm_projector_align.bin"
NEW_MODULES = ("model.alignment_embeddings.", "model.alignment_gate.")


@dataclass
class Conversion:
    """A converted model, its processor, and what became of the weights: names used, left aside (and why), new."""

    model: AlignGPTForConditionalGeneration
    processor: AlignGPTProcessor
    used: list[str] = field(default_factory=list)
    left_aside: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)


def convert(source: str, vision: str | None = None, base: str | None = None) -> Conversion:
    """
    Reads a checkpoint of another format.

    Args:
        source (`str`): Hub id or folder of an AlignGPT by the authors or of a LLaVA-1.5 in transformers' format; or
            the authors' stage-1 file, `mm_projector_align.bin`.
        vision (`str`, *optional*): Hub id or folder of the tower, where it is not what the authors' configuration
            names as `mm_vision_tower`.
        base (`str`, *optional*): for a stage-1 file: the composed AlignGPT that it belongs to.

    Raises:
        ValueError: if the format is unknown, or a weight is missing, unexpected, or of another shape than expected.
        FileNotFoundError: if the source or one of its shards is not there.
    """
    path = Path(source)
    if path.name == STAGE_1_FILE or (path / STAGE_1_FILE).is_file():
        if base is None:
            raise ValueError(f"{source} is a stage-1 file: name the composed model that it belongs to with --base.")
        return _convert_stage_1(path / STAGE_1_FILE if path.is_dir() else path, base)
    if not path.is_dir():
        if path.exists() or path.is_absolute():
            raise FileNotFoundError(f"{source} is no folder of a checkpoint.")
        path = Path(snapshot_download(source))
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{source} has no config.json.")
    raw = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if raw.get("model_type") == "llava" and "vision_config" in raw:
        return _convert_llava(str(path))
    if "mm_projector_type" in raw or "mm_vision_tower" in raw:
        return _convert_authors(path, raw, vision)
    if raw.get("model_type") == AlignGPTConfig.model_type:
        raise ValueError(f"{source} is an AlignGPT of this package already: use it as it is.")
    raise ValueError(
        f"{source} (model_type {raw.get('model_type')!r}) is neither an AlignGPT by the authors, with mm_vision_tower "
        "in its config.json, nor a LLaVA-1.5 in transformers' format."
    )


def _convert_authors(path: Path, raw: dict[str, Any], vision: str | None) -> Conversion:
    _check_authors_config(path, raw)
    language, added, left_aside, names = {}, {}, {}, {}
    for key, tensor in read_state_dict(path).items():
        if reason := next((why for pattern, why in LEFT_ASIDE.items() if re.fullmatch(pattern, key)), None):
            left_aside[key] = reason
        elif name := _authors_name(key):
            added[name], names[name] = tensor, key
        elif key.startswith(("model.", "lm_head.")):
            language[key] = tensor
        else:
            raise ValueError(f"{path} has a weight that no AlignGPT has: {key}")
    for pattern, name in AUTHORS_MODULES.items():
        for kind in ("weight", "bias") if "(" in pattern else ("",):
            if name.replace(r"\1", kind) not in added:
                raise ValueError(f"{path} lacks {pattern.replace('(weight|bias)', kind)}: is it an AlignGPT?")

    text_config = _authors_text_config(raw)
    dtype = next(iter(language.values())).dtype
    with quiet():
        language_model, info = MODEL_FOR_CAUSAL_LM_MAPPING[type(text_config)].from_pretrained(
            None, config=text_config, state_dict=language, dtype=dtype, output_loading_info=True
        )
    if wrong := sorted(info["missing_keys"] | info["unexpected_keys"]):
        raise ValueError(f"The language model of {path} has missing or unexpected weights: {wrong[:5]}")
    if (path / "generation_config.json").is_file():
        language_model.generation_config = GenerationConfig.from_pretrained(path)
    vision = vision or raw["mm_vision_tower"]
    model, processor = assemble(
        language_model,
        load_tower(vision, dtype=dtype),
        prepare_tokenizer(AutoTokenizer.from_pretrained(path)),
        load_tower_processor(vision),
        num_alignment_levels=added["alignment_embeddings.weight"].shape[0],
        alignment_gate_hidden_size=added["alignment_gate.linear_1.weight"].shape[0],
        alignment_gate_text="all",
        vision_feature_layer=raw.get("mm_vision_select_layer", -2),
    )
    _load_added(model, added, names, path)
    processor.image_processor.do_pad = raw.get("image_aspect_ratio") == "pad"
    processor.tokenizer.model_max_length = raw.get("tokenizer_model_max_length", processor.tokenizer.model_max_length)
    return Conversion(model, processor, [*language, *names.values()], left_aside)


def _check_authors_config(path: Path, raw: dict[str, Any]) -> None:
    """Refuses what would make another model than the one that this package builds."""
    expected: dict[str, tuple[Callable[[Any], bool], str]] = {
        "mm_projector_type": (lambda value: value == "mlp2x_gelu", "mlp2x_gelu"),
        "mm_vision_select_feature": (lambda value: value == "patch", "patch"),
        "mm_use_im_start_end": (lambda value: not value, "false"),
        "mm_use_im_patch_token": (lambda value: not value, "false"),
        "image_aspect_ratio": (lambda value: value in (None, "pad", "square"), "pad or square"),
        "s2": (lambda value: not value, "false"),
    }
    for name, (is_known, known) in expected.items():
        if name in raw and not is_known(raw[name]):
            raise ValueError(f"{path}: {name} is {raw[name]!r} in its config.json; known is {known}.")


def _authors_name(key: str) -> str | None:
    for pattern, name in AUTHORS_MODULES.items():
        if match := re.fullmatch(rf"(?:model\.)?{pattern}", key):
            return match.expand(name)
    return None


def _authors_text_config(raw: dict[str, Any]):
    """The language model's configuration: theirs is one with fields of the other parts among its own."""
    family = next((part for part in reversed(raw["model_type"].split("_")) if part in CONFIG_MAPPING_NAMES), "llama")
    family = "llama" if family == "llava" else family
    others = re.compile("mm_|image_|tokenizer_|tune_|freeze_|unfreeze_|use_mm|s2|auto_map|architectures|_name|model_t")
    fields = {name: value for name, value in raw.items() if not others.match(name)}
    return AutoConfig.for_model(family, **fields)


def _load_added(model: AlignGPTForConditionalGeneration, added: dict, names: dict[str, str], path: Path) -> None:
    state = dict(model.model.named_parameters())
    for name, tensor in added.items():
        if state[name].shape != tensor.shape:
            raise ValueError(
                f"{names[name]} of {path} has shape {tuple(tensor.shape)}; with this tower and language model it "
                f"would be {tuple(state[name].shape)}."
            )
        state[name].data.copy_(tensor)


def _convert_stage_1(path: Path, base: str) -> Conversion:
    model = AlignGPTForConditionalGeneration.from_pretrained(base)
    names, added = {}, {}
    for key, tensor in read_state_dict(path).items():
        name = _authors_name(key)
        if name is None:
            raise ValueError(f"{path} has a weight that no stage-1 file has: {key}")
        names[name], added[name] = key, tensor
    parts = ("multi_modal_projector.", "alignment_embeddings.")
    expected = {name for name, _ in model.model.named_parameters() if name.startswith(parts)}
    if missing := sorted(expected - added.keys()):
        raise ValueError(f"{path} lacks the weights of {missing}.")
    _load_added(model, added, names, path)
    gate = [] if any(name.startswith("alignment_gate.") for name in added) else ["alignment_gate (from the base)"]
    return Conversion(model, AutoProcessor.from_pretrained(base), list(names.values()), new=gate)


def _convert_llava(path: str) -> Conversion:
    llava = LlavaConfig.from_pretrained(path).to_dict()
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(path))
    if (image_token_id := llava.get("image_token_index")) not in (None, tokenizer.image_token_id):
        raise ValueError(
            f"{path}: the image token has id {image_token_id} in config.json, {tokenizer.image_token_id} in the "
            "tokenizer."
        )
    others = ("model_type", "architectures", "image_seq_length", "transformers_version", "auto_map", "dtype")
    fields = {name: value for name, value in llava.items() if name not in others}
    fields |= {"align_token_id": tokenizer.align_token_id, "image_token_index": tokenizer.image_token_id}
    config = AlignGPTConfig(**fields)
    with quiet():
        model, info = AlignGPTForConditionalGeneration.from_pretrained(
            path, config=config, dtype="auto", output_loading_info=True
        )
    new = sorted(info["missing_keys"])
    if wrong := [name for name in new if not name.startswith(NEW_MODULES)] + sorted(info["unexpected_keys"]):
        raise ValueError(f"{path} has missing or unexpected weights: {wrong[:5]}")
    add_token_rows(model, tokenizer)
    chat_template = choose_chat_template(tokenizer)
    settle_generation(model, tokenizer, chat_template)
    processor = make_processor(model.config, tokenizer, load_tower_processor(path), chat_template)
    used = [name for name, _ in model.named_parameters() if not name.startswith(NEW_MODULES)]
    return Conversion(model, processor, used, new=new)
