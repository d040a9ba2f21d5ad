"""What each training stage is: the one table that says so. Scripts, `inspect` and tests use it."""

import os
import re
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from peft import LoraConfig
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import ModelConfig

from aligngpt import AlignGPTForConditionalGeneration, AlignGPTProcessor
from aligngpt.training.collator import AlignGPTDataCollator


@dataclass(frozen=True)
class Stage:
    """
    Args:
        trained_modules (`tuple[str]`): paths of the modules that train; the others are frozen.
        chat_template (`str`, *optional*): name of the processor's template that writes the rows; its default one.
        pads_images (`bool`): to a square; else what is beyond the middle square is cut off.
        needs_levels (`bool`): whether each row with an image has to have an alignment level, whose embedding is looked
            up; else the gate mixes them.
    """

    trained_modules: tuple[str, ...]
    chat_template: str | None
    pads_images: bool
    needs_levels: bool


STAGES = {
    # Stage 1 learns to read images, and one vector per level; the vision tower and the LLM stay frozen
    "pretrain": Stage(
        trained_modules=("model.multi_modal_projector", "model.alignment_embeddings"),
        chat_template="plain",
        pads_images=False,
        needs_levels=True,
    ),
    # Stage 2 learns to follow instructions and to mix the vectors, which stay as stage 1 left them
    "sft": Stage(
        trained_modules=("model.multi_modal_projector", "model.language_model", "lm_head", "model.alignment_gate"),
        chat_template=None,
        pads_images=True,
        needs_levels=False,
    ),
}

# Never in 4 or 8 bits: what LoRA does not adapt is small, is trained itself, or makes the logits. transformers matches
# whole paths from the root; a bare "vision_tower" would match nothing
UNQUANTIZED_MODULES = ["model.vision_tower", "model.multi_modal_projector", "model.alignment_gate", "lm_head"]


def get_trained_modules(
    model: AlignGPTForConditionalGeneration, stage: Literal["pretrain", "sft"], *extra: str
) -> list[str]:
    """
    Paths of the modules that a stage trains, and `extra` ones. The gate is not among them where `alignment_mode` does
    not use it. Source: the paper, sections 3.2 and 3.3.

    Raises:
        ValueError: if there is no such stage.
    """
    if stage not in STAGES:
        raise ValueError(f"There is no stage {stage!r}; the stages are {', '.join(STAGES)}.")
    modules = list(dict.fromkeys([*STAGES[stage].trained_modules, *extra]))
    if model.config.alignment_mode in ("average", "global"):
        modules = [name for name in modules if name != "model.alignment_gate"]
    return modules


def make_collator(
    stage: Literal["pretrain", "sft"],
    processor: AlignGPTProcessor,
    num_alignment_levels: int | None = None,
    **options,
) -> AlignGPTDataCollator:
    """
    What makes a stage's batches. The processor is set to pad images as the stage does, and is saved so with the model.

    Args:
        stage (`str`): `pretrain` or `sft`.
        processor (`AlignGPTProcessor`): of the model.
        num_alignment_levels (`int`, *optional*): N; without it the levels of stage 1 are not looked at.
        options: of the collator.
    """
    processor.image_processor.do_pad = STAGES[stage].pads_images
    return AlignGPTDataCollator(
        processor,
        chat_template=STAGES[stage].chat_template,
        num_alignment_levels=num_alignment_levels if STAGES[stage].needs_levels else None,
        **options,
    )


def select_trainable(
    model: AlignGPTForConditionalGeneration, stage: Literal["pretrain", "sft"], *extra: str
) -> list[str]:
    """
    Sets `requires_grad` of every parameter for a stage that trains all weights of its modules (and of `extra` ones),
    and returns the names of those that train.

    Raises:
        ValueError: if there is no such stage.
    """
    model.requires_grad_(False)
    for name in get_trained_modules(model, stage, *extra):
        model.get_submodule(name).requires_grad_(True)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def hold_trained_in_float32(model: nn.Module, autocast: bool) -> None:
    """
    Casts the parameters that train to float32: AdamW's steps are smaller than what half precision can tell apart, and
    would be lost. TRL holds those beside a quantised model in bf16, which a T4 and fp16's loss scaling do not know.

    Args:
        model (`nn.Module`): with `requires_grad` set.
        autocast (`bool`): whether they are used in half precision all the same (`bf16: true`, `fp16: true`).

    Raises:
        ValueError: if the rest is in half precision, and there is no autocast to bring both together.
    """
    half = [parameter for parameter in model.parameters() if parameter.dtype in (torch.float16, torch.bfloat16)]
    frozen = [parameter for parameter in half if not parameter.requires_grad]
    if frozen and not autocast:
        raise ValueError(
            f"The model is in {frozen[0].dtype}: set bf16 or fp16 to true, so that what trains can be held in "
            "float32, or load the model in float32 (dtype)."
        )
    for parameter in half:
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def redraw_alignment_embeddings(model: AlignGPTForConditionalGeneration) -> None:
    """Draws the alignment embeddings anew, in place: the paper's ablation without what stage 1 learnt."""
    weight, gathered = model.model.alignment_embeddings.weight, nullcontext()
    if is_deepspeed_zero3_enabled():  # every process has a part of it
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters(weight, modifier_rank=0)
    with gathered:
        if weight.numel():
            nn.init.xavier_uniform_(weight)


def get_lora_config(
    model: AlignGPTForConditionalGeneration, model_args: ModelConfig, *extra: str
) -> LoraConfig | None:
    """
    LoRA for stage 2, or None without `use_peft` (with it, a `name_or_path` of the model that is a folder becomes an
    absolute path): on the linear layers of the language model's blocks; the other
    modules that stage 2 trains (and `extra` ones) are trained whole and saved with the adapter. The head stays frozen.
    `lora_target_modules` names other leaves of the language model, e.g. `q_proj v_proj`.
    """
    if not model_args.use_peft:
        return None
    if os.path.isdir(model.name_or_path):
        # peft stores it as the adapter's base, which has to be found from any working directory
        model.name_or_path = os.path.abspath(model.name_or_path)
    blocks = model.model.language_model.layers
    leaves = model_args.lora_target_modules
    leaves = [leaves] if isinstance(leaves, str) else leaves  # TRL makes a string of a list of one
    if not leaves or leaves == ["all-linear"]:
        leaves = sorted({name for name, module in blocks[0].named_modules() if isinstance(module, nn.Linear)})
    # "all-linear" and bare suffixes would also adapt the vision tower, the projector and the gate
    target = r".*\.language_model\.layers\.\d+\.(.*\.)?(" + "|".join(map(re.escape, leaves)) + ")"
    adapted = ("model.language_model", "lm_head")
    whole = [name for name in get_trained_modules(model, "sft", *extra) if name not in adapted]
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        use_rslora=model_args.use_rslora,
        use_dora=model_args.use_dora,
        target_modules=target,
        modules_to_save=[*whole, *(model_args.lora_modules_to_save or [])],
    )
