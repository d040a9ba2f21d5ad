# Copyright 2026 the aligngpt authors. Licensed under the Apache License, Version 2.0; see LICENSE or
# http://www.apache.org/licenses/LICENSE-2.0
"""Configuration of AlignGPT (arXiv 2405.14129): LLaVA's plus the alignment fields. Copied to the Hub with a model."""

import math
import os
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict, validated_field
from transformers import LlavaConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES


__version__ = "0.1.0"

# Where a repository's files define the classes, for `trust_remote_code=True`. Saving a model alone would write only
# the entries of the model's own class.
AUTO_MAP = {
    "AutoConfig": "configuration_aligngpt.AlignGPTConfig",
    "AutoModel": "modeling_aligngpt.AlignGPTModel",
    "AutoModelForImageTextToText": "modeling_aligngpt.AlignGPTForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_aligngpt.AlignGPTForConditionalGeneration",
    "AutoProcessor": "processing_aligngpt.AlignGPTProcessor",
}

# transformers' server asks this table which class a checkpoint loads by, and whether it takes pictures; this file is
# the one that it has imported by then
MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES["aligngpt"] = "AlignGPTForConditionalGeneration"


def check_positive(value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{value} is not above 0 and finite.")


@strict
class AlignGPTConfig(LlavaConfig):
    r"""
    Configuration of an AlignGPT model: a vision tower, a projector and a decoder-only language model as in
    [`~transformers.LlavaConfig`], with alignment embeddings and an alignment gate.

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            Any tower that `AutoModel` builds. Defaults to CLIP ViT-L/14 at 336 px.
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            Any decoder-only model that `AutoModel` builds. Defaults to LLaMA.
        image_seq_length (`int`, *optional*):
            Number of tokens per image, T in the paper. Computed from the tower's image and patch size where not given;
            give it for a tower whose kept features are not its patch grid.
        num_alignment_levels (`int`, *optional*, defaults to 8):
            N, the number of alignment embeddings. Levels are 0-based, N-1 is the best-aligned (the *global*) one.
        alignment_gate_hidden_size (`int`, *optional*, defaults to 256):
            Width of the gate's hidden layer.
        alignment_mode (`"adaptive"`, `"average"`, `"local"` or `"global"`, *optional*, defaults to `"adaptive"`):
            How the alignment vector is made where no level is given. `adaptive`: equation 3, global row plus gated
            local rows. `average`: global row plus the plain mean of the local rows. `local`: gated local rows only.
            `global`: global row only. The last three are the paper's ablations.
        alignment_gate_text (`"prompt"` or `"all"`, *optional*, defaults to `"prompt"`):
            Text that the gate reads: what `token_type_ids` marks (everything outside assistant turns), or all of it
            (the authors' behaviour, where the gate sees the answer during training).
        alignment_gate_query (`"mean"` or `"attention"`, *optional*, defaults to `"mean"`):
            How that text becomes the one vector that image tokens are compared with: the mean of its embeddings
            (equation 2), or a mean weighted by a learnt softmax over the tokens, so that the few words that tell one
            question from another are not drowned in what all prompts share.
        alignment_gate_input (`str`, *optional*, defaults to `"dot_product"`):
            What the gate's MLP is given. `dot_product`: those of the T image tokens with the text's vector
            (equation 2). `layer_norm`: these, brought to mean 0 and variance 1 over the T tokens. `cosine`: cosine
            similarities times the square root of D, which have variance 1 between unrelated vectors. `text`: the
            text's vector alone, brought to mean 0 and variance 1 over its D numbers: the question decides, whatever
            the image.
        alignment_gate_temperature (`float`, *optional*, defaults to 1.0):
            Divides the gate's logits before the softmax.
        vision_scales (`list[int]`, *optional*):
            Multi-scale features (S2, as in the paper's rows at 672 and 1008 px): the sizes at which the tower sees an
            image, as multiples of its own, e.g. `[1, 2]`. Larger ones are cut into tiles of the tower's size; features
            are pooled back to its grid and concatenated along channels, so that T stays as it is.
        lm_head_bias (`bool`, *optional*, defaults to `False`):
            Whether the language model's head has a bias (Phi).
        align_token_id (`int`, *optional*, defaults to 32001):
            Id of `<align>`, the placeholder that the alignment vector replaces.
        aligngpt_version (`str`, *optional*):
            Version of aligngpt that wrote the configuration. Written on every save.

    Raises:
        StrictDataclassFieldValidationError: if a field has a value of another type, or a temperature is not above 0.
        ValueError: if there are fewer than 2 levels, `<image>` and `<align>` share an id, or scales are no positive
            integers or meet a tower whose kept features are not its patch grid.
    """

    model_type = "aligngpt"

    image_seq_length: int | None = None
    num_alignment_levels: int = 8
    alignment_gate_hidden_size: int = 256
    alignment_mode: Literal["adaptive", "average", "local", "global"] = "adaptive"
    alignment_gate_text: Literal["prompt", "all"] = "prompt"
    alignment_gate_query: Literal["mean", "attention"] = "mean"
    alignment_gate_input: Literal["dot_product", "layer_norm", "cosine", "text"] = "dot_product"
    alignment_gate_temperature: float | int = validated_field(default=1.0, validator=check_positive)
    vision_scales: list[int] | None = None
    lm_head_bias: bool = False
    align_token_id: int = 32001
    aligngpt_version: str = __version__

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.image_seq_length is None:
            self.image_seq_length = self.vision_grid_size**2
        if self.num_alignment_levels < 2:
            raise ValueError(
                f"num_alignment_levels is {self.num_alignment_levels}; the gate needs at least one local level beside "
                "the global one, so at least 2."
            )
        if self.align_token_id == self.image_token_index:
            raise ValueError(f"align_token_id and image_token_index are both {self.align_token_id}; they must differ.")
        if self.vision_scales is not None:
            if not self.vision_scales or min(self.vision_scales) < 1:
                raise ValueError(f"vision_scales are {self.vision_scales}; expected positive integers such as [1, 2].")
            if self.image_seq_length != self.vision_grid_size**2:
                raise ValueError(
                    f"Multi-scale features are pooled to the tower's grid of {self.vision_grid_size**2} patches, but "
                    f"image_seq_length is {self.image_seq_length}."
                )

    @property
    def vision_grid_size(self) -> int:
        """Patches of the tower along a side."""
        image_size = getattr(self.vision_config, "image_size", None)
        if image_size is None:  # SigLIP 2: a number of patches, in any shape
            return math.isqrt(self.vision_config.num_patches)
        return image_size // self.vision_config.patch_size

    @property
    def image_size(self) -> int:
        """Side of the pixel values that the model takes: the tower's, times the largest scale."""
        tower_size = getattr(self.vision_config, "image_size", None)
        if tower_size is None:
            tower_size = self.vision_grid_size * self.vision_config.patch_size
        return tower_size * max(self.vision_scales or [1])

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        """
        As [`~transformers.PreTrainedConfig.save_pretrained`], with the LICENSE of the code beside it unless the folder
        has one. Saving or pushing a model does this too.
        """
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        # None where the model was loaded by its code, on a machine without the package; in a checkout there may be two
        found = (file for distribution in distributions(name="aligngpt") for file in distribution.files or [])
        texts = [file for file in found if file.parts[-2:] == ("licenses", "LICENSE")]
        path = Path(save_directory, "LICENSE")
        if texts and texts[0].locate().is_file() and not path.exists():
            path.write_bytes(texts[0].locate().read_bytes())

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "aligngpt_version": __version__, "auto_map": dict(AUTO_MAP)}


__all__ = ["AlignGPTConfig"]
