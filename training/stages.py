"""What each training stage trains. The one place that says so; scripts and tests use it."""

from typing import Literal

from aligngpt import AlignGPTForConditionalGeneration


TRAINED_MODULES = {
    # METHOD: stage 1 learns to read images, and one vector per level; the vision tower and the LLM stay frozen
    "pretrain": ("model.multi_modal_projector", "model.alignment_embeddings"),
    # stage 2 learns to follow instructions and to mix the vectors, which stay as stage 1 left them
    "sft": ("model.multi_modal_projector", "model.language_model", "lm_head", "model.alignment_gate"),
}


def select_trainable(model: AlignGPTForConditionalGeneration, stage: Literal["pretrain", "sft"]) -> list[str]:
    """
    Sets `requires_grad` of every parameter for a stage and returns the names of those that train. The gate stays
    frozen where `alignment_mode` does not use it. Source: the paper, sections 3.2 and 3.3.

    Raises:
        ValueError: if there is no such stage.
    """
    if stage not in TRAINED_MODULES:
        raise ValueError(f"There is no stage {stage!r}; the stages are {', '.join(TRAINED_MODULES)}.")
    modules = TRAINED_MODULES[stage]
    if model.config.alignment_mode in ("average", "global"):
        modules = tuple(name for name in modules if name != "model.alignment_gate")
    model.requires_grad_(False)
    for name in modules:
        model.get_submodule(name).requires_grad_(True)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]
