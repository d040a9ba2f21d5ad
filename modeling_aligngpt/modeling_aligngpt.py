# Copyright 2026 the aligngpt authors. Licensed under the Apache License, Version 2.0; see LICENSE or
# http://www.apache.org/licenses/LICENSE-2.0
"""
AlignGPT (arXiv 2405.14129): LLaVA plus alignment embeddings and an alignment gate. Copied to the Hub with a model.

Shapes: B rows, L tokens, n images in the batch, T tokens per image, D hidden size of the language model, N levels.
"""

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
import transformers
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaModel, LlavaPreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.generation import GenerationConfig, GenerationMixin, LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.auto import AutoModel
from transformers.models.llava.modeling_llava import (
    LlavaCausalLMOutputWithPast,
    LlavaModelOutputWithPast,
    LlavaMultiModalProjector,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, output_capturing, torch_compilable_check
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from .configuration_aligngpt import AlignGPTConfig


# LLaVA checkpoints, old key names included, load into the modules that AlignGPT shares with LLaVA. transformers looks
# the renaming up by model type and class name and does not inherit it, so without this the LLM would stay random.
register_checkpoint_conversion_mapping("aligngpt", get_checkpoint_conversion_mapping("llava"), overwrite=True)
register_checkpoint_conversion_mapping(
    "AlignGPTModel", get_checkpoint_conversion_mapping("LlavaModel"), overwrite=True
)
# Since 5.21 a tower can be asked for the hidden states of some layers; before, it keeps all or none in memory
KEEPS_SINGLE_LAYERS = hasattr(output_capturing, "select_hidden_states")
PREFILLS_IMAGES_IN_CHUNKS = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 23)
# What transformers calls the KV cache: `cache` from 5.24 on. `forward` takes it by both names
CACHE_NAME = "cache" if "cache" in inspect.signature(LlavaModel.forward).parameters else "past_key_values"


@dataclass
class AlignGPTModelOutputWithPast(LlavaModelOutputWithPast):
    """
    LLaVA's outputs; `image_hidden_states` (n * T, D), the projected image tokens; `alignment_weights` (B, N-1): the
    weights of the local alignment embeddings in equation 3, zero in rows where no gate ran (no image, or a level was
    given).
    """

    image_hidden_states: torch.Tensor | None = None  # from 5.24 on LLaVA has the tower's outputs instead
    alignment_weights: torch.Tensor | None = None


@dataclass
class AlignGPTCausalLMOutputWithPast(LlavaCausalLMOutputWithPast):
    """LLaVA's outputs, and those of [`AlignGPTModelOutputWithPast`]."""

    image_hidden_states: torch.Tensor | None = None
    alignment_weights: torch.Tensor | None = None


class MergedInputs(NamedTuple):
    """What the language model is given, and what it was made of."""

    inputs_embeds: torch.Tensor  # (B, L, D), images and alignment vectors in place
    image_tokens: torch.Tensor | None  # (n * T, D)
    alignment_vectors: torch.Tensor | None  # (B, D)
    alignment_weights: torch.Tensor  # (B, N-1), of the local embeddings


class AlignmentEmbeddings(nn.Embedding):
    """
    The alignment embeddings H_1..H_N, one vector per degree of image-text alignment, learnt in stage 1 by looking up
    the level l of each pair (equation 1): H_align = H_l. The last row is the global one, the others are local.
    """

    def __init__(self, config: AlignGPTConfig):
        super().__init__(config.num_alignment_levels, config.get_text_config().hidden_size)


class AlignmentGate(nn.Module):
    """
    The adaptive gate of equation 2: alpha = softmax(W (H_I (x) H_T) + b), where `H_I (x) H_T` are the dot products of
    the T image tokens with the mean embedding of the text and W is a two-layer MLP. `config.alignment_gate_query`,
    `_input` and `_temperature` change what is compared and how sharply; their defaults are the equation.
    """

    def __init__(self, config: AlignGPTConfig):
        super().__init__()
        hidden_size = config.get_text_config().hidden_size
        self.input = config.alignment_gate_input
        self.temperature = config.alignment_gate_temperature
        self.text_attention = None
        if config.alignment_gate_query == "attention":
            self.text_attention = nn.Linear(hidden_size, 1, bias=False)
        # By another name, so that a checkpoint with the one gate is a valid start for the other
        if self.input == "text":
            self.text_linear = nn.Linear(hidden_size, config.alignment_gate_hidden_size)
        else:
            self.linear_1 = nn.Linear(config.image_seq_length, config.alignment_gate_hidden_size)
        self.act = ACT2FN["gelu"]
        self.linear_2 = nn.Linear(config.alignment_gate_hidden_size, config.num_alignment_levels - 1)

    def pool_text(self, text_embeddings: torch.Tensor, text_mask: torch.BoolTensor) -> torch.Tensor:
        """H_T (B, D) from embeddings (B, L, D) and the mask of those that the gate reads, (B, L)."""
        if self.text_attention is None:
            text_mask = text_mask.to(text_embeddings.dtype)
            num_tokens = text_mask.sum(-1, keepdim=True).clamp(min=1)
            return torch.einsum("bl,bld->bd", text_mask, text_embeddings) / num_tokens
        # With a device_map the gate may be elsewhere
        scores = self.text_attention(text_embeddings).squeeze(-1).to(text_mask.device, torch.float32)  # (B, L)
        scores = scores.masked_fill(~text_mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1) * text_mask  # nothing in a row without text, as the mean
        return torch.einsum("bl,bld->bd", weights.to(text_embeddings.dtype), text_embeddings)

    def compare(
        self, image_features: torch.Tensor, text_vectors: torch.Tensor, image_rows: torch.LongTensor
    ) -> torch.Tensor:
        """
        What the MLP is given, (B, T) or (B, D): H_I (x) H_T from image features (n, T, D), text vectors (B, D) and the
        row that each image belongs to (n,), or the text alone. The values of a row's images are averaged.
        """
        if self.input == "text":
            return nn.functional.layer_norm(text_vectors, text_vectors.shape[-1:])
        num_rows = text_vectors.shape[0]
        if self.input == "cosine":
            # In float32: half precision knows no number small enough to keep a vector of zeros from 0 / 0
            image_features = nn.functional.normalize(image_features.float(), dim=-1).to(image_features.dtype)
            text_vectors = nn.functional.normalize(text_vectors.float(), dim=-1).to(text_vectors.dtype)
            text_vectors = text_vectors * text_vectors.shape[-1] ** 0.5
        scores = torch.einsum("ntd,nd->nt", image_features, text_vectors[image_rows])  # (n, T)
        images_per_row = scores.new_zeros(num_rows).index_add(0, image_rows, torch.ones_like(scores[:, 0]))
        scores = scores.new_zeros(num_rows, scores.shape[1]).index_add(0, image_rows, scores)
        scores = scores / images_per_row.clamp(min=1).unsqueeze(-1)  # (B, T)
        return nn.functional.layer_norm(scores, scores.shape[-1:]) if self.input == "layer_norm" else scores

    def forward(
        self, image_features: torch.Tensor, text_vectors: torch.Tensor, image_rows: torch.LongTensor
    ) -> torch.Tensor:
        """Weights of the local alignment embeddings, (B, N-1); arguments as in `compare`."""
        first_layer = self.text_linear if self.input == "text" else self.linear_1
        hidden_states = self.act(first_layer(self.compare(image_features, text_vectors, image_rows)))
        logits = self.linear_2(hidden_states) / self.temperature  # (B, N-1)
        # The weights mix rows of a table of half-precision vectors: rounding belongs after the softmax, not inside
        return nn.functional.softmax(logits, dim=-1, dtype=torch.float32).to(logits.dtype)


class AlignGPTMultiModalProjector(LlavaMultiModalProjector):
    """LLaVA's projector, as wide as the features of all scales."""

    def __init__(self, config: AlignGPTConfig):
        super().__init__(config)
        if config.vision_scales is not None:
            self.linear_1 = nn.Linear(
                self.linear_1.in_features * len(config.vision_scales),
                self.linear_1.out_features,
                bias=config.multimodal_projector_bias,
            )


class AlignGPTPreTrainedModel(LlavaPreTrainedModel):
    config: AlignGPTConfig

    if TYPE_CHECKING:  # transformers' own is typed as a function of the class

        def push_to_hub(self, repo_id: str, **kwargs: Any) -> str: ...

    @classmethod
    def is_custom_code(cls) -> bool:
        # For custom code transformers skips the initialisation of containers without parameters of their own (the
        # tower's, when its weights are missing), lest it overwrite loaded weights; `_init_weights` below cannot
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, AlignmentEmbeddings):
            init.xavier_uniform_(module.weight)

    def get_alignment_weights(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        alignment_levels: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        alignment_vectors: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """
        `alignment_weights` (B, N-1) as `forward` gives them, without running the language model; for a batch as the
        processor or a collator returns it: `model.get_alignment_weights(**processor(...))`. Arguments and errors are
        those of `forward`; what only the language model and the loss read has no effect.

        Raises:
            TypeError: if there is an argument that nothing in `forward` reads.
        """
        known = {"labels", "shift_labels", "return_dict", *TransformersKwargs.__annotations__}
        for reader in (self, self.base_model.language_model):
            known.update(inspect.signature(type(reader).forward).parameters)
        if unknown := sorted(kwargs.keys() - known):
            raise TypeError(f"get_alignment_weights got arguments that nothing in forward reads: {unknown}.")
        return self.base_model._merge_modalities(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            vision_feature_layer=vision_feature_layer,
            vision_feature_select_strategy=vision_feature_select_strategy,
            mm_encoder_outputs=mm_encoder_outputs,
            alignment_levels=alignment_levels,
            token_type_ids=token_type_ids,
            alignment_vectors=alignment_vectors,
        ).alignment_weights


class AlignGPTModel(AlignGPTPreTrainedModel, LlavaModel):
    """
    The backbone: vision tower, projector, alignment embeddings and gate, and the language model without its head.
    """

    def __init__(self, config: AlignGPTConfig):
        # Not LlavaModel.__init__: it ends in post_init(), which has to come once, after all modules exist
        super(LlavaModel, self).__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = AlignGPTMultiModalProjector(config)
        self.alignment_embeddings = AlignmentEmbeddings(config)
        self.alignment_gate = AlignmentGate(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    @merge_with_config_defaults
    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """
        As [`~transformers.LlavaModel.get_image_features`], at every scale of `config.vision_scales`; `pooler_output`
        has the projected tokens (T, D) of each image (none for pixels of no image), the rest is the tower's at the
        first scale. The strategy `"default"` drops all that precedes the patches: a class token, registers.
        """
        if pixel_values.numel() == 0:
            return BaseModelOutputWithPooling(pooler_output=[])
        layers = [vision_feature_layer] if isinstance(vision_feature_layer, int) else vision_feature_layer
        if not kwargs.get("output_hidden_states"):
            kwargs["output_hidden_states"] = layers if KEEPS_SINGLE_LAYERS else True
        all_outputs, features = [], []
        for scale in self.config.vision_scales or [1]:
            all_outputs.append(self._run_tower(self._cut_into_tiles(pixel_values, scale), **kwargs))
            tokens = torch.cat([all_outputs[-1].hidden_states[layer] for layer in layers], dim=-1)
            if vision_feature_select_strategy == "default":
                tokens = tokens[:, tokens.shape[1] - self.config.vision_grid_size**2 :]
            features.append(self._pool_tiles(tokens, scale) if scale > 1 else tokens)
        image_outputs = all_outputs[0]
        image_outputs.pooler_output = list(self.multi_modal_projector(torch.cat(features, dim=-1)))
        return image_outputs

    def _run_tower(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """The tower's outputs for images (n, channels, S, S) of its size; without a graph if it is frozen."""
        # Gradient checkpointing makes the outputs of all embeddings need gradients, those of the tower's patches too
        needs_graph = pixel_values.requires_grad or any(p.requires_grad for p in self.vision_tower.parameters())
        if torch.is_grad_enabled() and not needs_graph:
            with torch.no_grad():
                return self._run_tower(pixel_values, **kwargs)
        if self.config.vision_config.model_type == "siglip2_vision_model":  # takes a row of patches and its shape
            side, patch = self.config.vision_grid_size, self.config.vision_config.patch_size
            patches = pixel_values.unflatten(3, (side, patch)).unflatten(2, (side, patch))  # (n, C, h, p, w, p)
            kwargs["spatial_shapes"] = torch.full((len(patches), 2), side, device=patches.device)
            kwargs["pixel_attention_mask"] = torch.ones((len(patches), side**2), device=patches.device)
            pixel_values = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        return self.vision_tower(pixel_values, return_dict=True, **kwargs)

    def _cut_into_tiles(self, pixel_values: torch.Tensor, scale: int) -> torch.Tensor:
        """Images (n, channels, H, W) at `scale` times the tower's size S, in tiles (n * scale^2, channels, S, S)."""
        size = self.config.image_size // max(self.config.vision_scales or [1])
        if self.config.vision_scales is not None and pixel_values.shape[-1] != size * scale:
            resized = nn.functional.interpolate(
                pixel_values.float(), size=(size * scale, size * scale), mode="bicubic"
            )
            pixel_values = resized.to(pixel_values.dtype)
        if scale == 1:
            return pixel_values
        tiles = pixel_values.unflatten(3, (scale, size)).unflatten(2, (scale, size))  # (n, C, rows, S, columns, S)
        return tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)

    def _pool_tiles(self, tokens: torch.Tensor, scale: int) -> torch.Tensor:
        """The tiles' tokens (n * scale^2, T, C) laid out as one image and averaged to the tower's grid, (n, T, C)."""
        side = self.config.vision_grid_size
        tokens = tokens.unflatten(1, (side, side)).unflatten(0, (-1, scale, scale))  # (n, rows, columns, h, w, C)
        picture = tokens.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # (n, C, rows * h, columns * w)
        return nn.functional.adaptive_avg_pool2d(picture, side).flatten(2).transpose(1, 2)

    def _get_token_mask(
        self, token_id: int, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor
    ) -> torch.BoolTensor:
        """Where a token stands, (B, L); found by its embedding if there are no ids."""
        if input_ids is not None:
            return input_ids == token_id
        return (inputs_embeds == self._embed_token(token_id, inputs_embeds.device)).all(-1)

    def _embed_token(self, token_id: int, device: torch.device) -> torch.Tensor:
        # By the module, for which ZeRO-3 gathers the table; as a row of one token, for hooks on it (NEFTune's) expect
        # (B, L, D)
        return self.get_input_embeddings()(torch.full((1, 1), token_id, dtype=torch.long, device=device))[0, 0]

    def get_alignment_text_mask(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
    ) -> torch.BoolTensor:
        """
        The tokens that the gate reads, (B, L). With `alignment_gate_text="prompt"` those of type 1; with `"all"`, or
        without `token_type_ids`, all text but BOS: no padding, no placeholder, not the first token if that is BOS.

        Raises:
            ValueError: if there are types for more or other tokens than the input has. Tokens after the last type,
                which a generation loop appends, are not read.
        """
        num_rows, length = inputs_embeds.shape[:2]
        if token_type_ids is not None and self.config.alignment_gate_text == "prompt":
            if token_type_ids.shape[0] != num_rows or token_type_ids.shape[1] > length:
                raise ValueError(
                    f"token_type_ids have shape {tuple(token_type_ids.shape)}, the input {(num_rows, length)}."
                )
            return nn.functional.pad(token_type_ids == 1, (0, length - token_type_ids.shape[1]))

        text_mask = torch.ones((num_rows, length), dtype=torch.bool, device=inputs_embeds.device)
        if attention_mask is not None and attention_mask.ndim == 2:
            text_mask = attention_mask[:, -length:].to(text_mask.device, torch.bool)
        is_first = text_mask & (text_mask.cumsum(-1) == 1)
        bos_token_id = self.config.get_text_config().bos_token_id
        if bos_token_id is not None:
            text_mask = text_mask & ~(is_first & self._get_token_mask(bos_token_id, input_ids, inputs_embeds))
        for token_id in (self.config.image_token_id, self.config.align_token_id):
            text_mask = text_mask & ~self._get_token_mask(token_id, input_ids, inputs_embeds)
        return text_mask

    def get_local_weights(
        self,
        image_features: torch.Tensor,
        image_rows: torch.LongTensor,
        text_embeddings: torch.Tensor,
        text_mask: torch.BoolTensor,
    ) -> torch.Tensor:
        """
        The weights alpha of the local embeddings in equation 3, (B, N-1), as `config.alignment_mode` says: from the
        gate, whose arguments these are, or the ablations' constants.
        """
        num_rows, num_local = text_mask.shape[0], self.config.num_alignment_levels - 1
        if self.config.alignment_mode == "global":
            return image_features.new_zeros(num_rows, num_local)
        if self.config.alignment_mode == "average":
            return image_features.new_full((num_rows, num_local), 1 / num_local)
        text_vectors = self.alignment_gate.pool_text(text_embeddings, text_mask)
        return self.alignment_gate(image_features, text_vectors, image_rows)

    def get_alignment_vectors(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.Tensor,
        image_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        alignment_levels: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The alignment vector of each row: H_l where a level is given (equation 1), otherwise the mix of equation 3 with
        the gate's weights (equation 2), and the plain embedding of `<align>` in a row without either.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`, *optional*): None if there are only embeddings.
            inputs_embeds (`torch.Tensor` of shape `(B, L, D)`): the embeddings of the tokens, placeholders included.
            image_features (`torch.Tensor` of shape `(n, T, D)`, *optional*): projected image tokens.
            attention_mask, alignment_levels, token_type_ids: as in `forward`.

        Returns:
            vectors (B, D) and weights of the local embeddings (B, N-1).

        Raises:
            ValueError: if the number of levels is not the number of rows, or a level is out of range.
        """
        num_rows, num_levels, device = inputs_embeds.shape[0], self.config.num_alignment_levels, inputs_embeds.device
        # With a device_map, table and gate may be elsewhere; everything that follows is on the embeddings' device
        embeddings = self.alignment_embeddings(torch.arange(num_levels, device=device)).to(device)  # (N, D)
        vectors = self._embed_token(self.config.align_token_id, device).to(embeddings).expand(num_rows, -1)
        weights = embeddings.new_zeros(num_rows, num_levels - 1)
        if image_features is not None:
            image_mask = self._get_token_mask(self.config.image_token_id, input_ids, inputs_embeds)
            # Images are numbered in reading order: an image's row comes after all rows that are full before it
            images_until_row = (image_mask.sum(-1) // image_features.shape[1]).cumsum(-1)  # (B,)
            image_numbers = torch.arange(image_features.shape[0], device=image_mask.device).unsqueeze(-1)
            image_rows = (images_until_row <= image_numbers).sum(-1).clamp(max=num_rows - 1)  # (n,)

            text_mask = self.get_alignment_text_mask(input_ids, inputs_embeds, attention_mask, token_type_ids)
            text_mask = text_mask.to(inputs_embeds.device)
            has_image = image_mask.any(-1, keepdim=True)
            weights = self.get_local_weights(image_features, image_rows, inputs_embeds, text_mask).to(embeddings)
            weights = torch.where(has_image, weights, 0.0)
            mix = weights @ embeddings[:-1]
            vectors = torch.where(
                has_image, mix if self.config.alignment_mode == "local" else mix + embeddings[-1], vectors
            )
        if alignment_levels is not None:
            if alignment_levels.shape != (num_rows,):
                raise ValueError(
                    f"alignment_levels have shape {tuple(alignment_levels.shape)}; expected one level for each of the "
                    f"{num_rows} rows, shape ({num_rows},)."
                )
            alignment_levels = alignment_levels.to(embeddings.device, torch.long)
            torch_compilable_check(
                ((alignment_levels >= -1) & (alignment_levels < num_levels)).all(),
                lambda: (
                    f"alignment_levels are {alignment_levels.tolist()}; each must be 0..{num_levels - 1}, or -1 to "
                    "let the gate decide."
                ),
            )
            # torch.where, not an assignment: the gate stays in the graph when every row has a level
            given = (alignment_levels >= 0).unsqueeze(-1)
            vectors = torch.where(given, embeddings[alignment_levels.clamp(min=0)], vectors)
            weights = torch.where(given, 0.0, weights)
        return vectors, weights

    def _merge_modalities(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        alignment_levels: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        alignment_vectors: torch.Tensor | None = None,
        needs_image: bool = False,
        **vision_kwargs,
    ) -> MergedInputs:
        """Arguments as in `forward`; with `needs_image` a batch without images runs all that one with images does."""
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        token_embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        weights = token_embeds.new_zeros(len(token_embeds), self.config.num_alignment_levels - 1)

        image_outputs = (mm_encoder_outputs or {}).get("image")
        if pixel_values is not None:
            if image_outputs is not None:
                raise ValueError("You cannot specify both pixel_values and mm_encoder_outputs at the same time")
            image_outputs = self.get_image_features(pixel_values=pixel_values, return_dict=True, **vision_kwargs)
        if image_outputs is not None and len(image_outputs.pooler_output) == 0:
            # GRPO gives rows of text the pixels of no image: it cuts the batch's by row
            self.get_placeholder_mask(input_ids, token_embeds, token_embeds[:0])  # an error if images are missing
            image_outputs = None
        is_blank = image_outputs is None and needs_image
        if is_blank:
            image_outputs = self._encode_blank_image(token_embeds, **vision_kwargs)
        merged_embeds, image_tokens, image_features = token_embeds, None, None
        if image_outputs is not None:
            image_tokens = torch.cat(tuple(image_outputs.pooler_output)).to(token_embeds.device, token_embeds.dtype)
            if is_blank:  # it goes nowhere, but all that it passes through gets a gradient, of zeros
                placeholder_mask = torch.zeros_like(token_embeds, dtype=torch.bool)
            else:
                placeholder_mask = self.get_placeholder_mask(input_ids, token_embeds, image_tokens.unsqueeze(0))
            merged_embeds = token_embeds.masked_scatter(placeholder_mask, image_tokens)
            if alignment_vectors is None:
                image_features = self._split_images(image_tokens, image_outputs.pooler_output, placeholder_mask)
        if alignment_vectors is None and (image_features is not None or alignment_levels is not None):
            alignment_vectors, weights = self.get_alignment_vectors(
                input_ids, token_embeds, image_features, attention_mask, alignment_levels, token_type_ids
            )
        if alignment_vectors is not None:
            align_mask = self._get_token_mask(self.config.align_token_id, input_ids, token_embeds)
            align_mask = align_mask & (align_mask.cumsum(-1) == 1)  # a generated one is a token like any other
            alignment_vectors = alignment_vectors.to(merged_embeds.device, merged_embeds.dtype)
            merged_embeds = torch.where(align_mask.unsqueeze(-1), alignment_vectors.unsqueeze(1), merged_embeds)
        return MergedInputs(merged_embeds, None if is_blank else image_tokens, alignment_vectors, weights)

    def _split_images(
        self, image_tokens: torch.Tensor, images: list[torch.Tensor] | torch.Tensor, placeholder_mask: torch.BoolTensor
    ) -> torch.Tensor:
        """
        Image tokens (n * T, D) as images (n, T, D) for the gate.

        Raises:
            ValueError: if T is not the model's, or a row's placeholders are no whole number of images.
        """
        length = self.config.image_seq_length
        if any(len(image) != length for image in images):
            raise ValueError(
                f"The vision tower gave {len(images[0])} tokens per image, but the alignment gate was built for "
                f"image_seq_length={length}: the processor's image size does not fit this model."
            )
        tokens_per_row = placeholder_mask.squeeze(-1).sum(-1)
        torch_compilable_check(
            (tokens_per_row % length == 0).all(),
            lambda: (
                f"Image features and image tokens do not match: an image has {length} tokens, the rows have "
                f"{tokens_per_row.tolist()}."
            ),
        )
        return image_tokens.unflatten(0, (-1, length))

    def _encode_blank_image(self, inputs_embeds: torch.Tensor, **vision_kwargs) -> BaseModelOutputWithPooling:
        """
        An image for a batch that has none, and no place for one. Processes that share a model have to run the same
        modules in the same order: a text-only batch on one of them would hang DDP, FSDP and ZeRO-3, and ZeRO-2 would
        add up the gradients of different parameters.
        """
        size = self.config.image_size
        blank_image = inputs_embeds.new_zeros(1, getattr(self.config.vision_config, "num_channels", 3), size, size)
        return self.get_image_features(pixel_values=blank_image, return_dict=True, **vision_kwargs)

    def _note_images(self, has_image: torch.BoolTensor, cache: Cache | None, may_begin: bool) -> torch.BoolTensor:
        """Rows (B,) of which the cache holds, or will hold, an image; `has_image` (B,) says which get one now."""
        if cache is None:
            return has_image
        noted = getattr(cache, "rows_with_image", None)
        noted = torch.zeros_like(has_image) if noted is None else noted.to(has_image.device)
        if len(noted) != len(has_image):  # the caller has repeated the cache's rows, or taken some
            noted = noted.all().expand_as(has_image)
        is_empty = torch.as_tensor(cache.get_seq_length() == 0, device=has_image.device)
        noted = noted & ~is_empty  # a cache that was reset may still have an older note
        if not may_begin:
            torch_compilable_check(
                (is_empty | noted | ~has_image).all(),
                "An image comes to a cache that began without one. The slot of its alignment vector is right after "
                "BOS, and all that is cached would change with it: pass the whole chat anew, without past_key_values.",
            )
        return noted | has_image

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        alignment_levels: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        alignment_vectors: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | AlignGPTModelOutputWithPast:
        """
        As [`~transformers.LlavaModel`], with:

        Args:
            pixel_values (`torch.Tensor` of shape `(n, channels, height, width)`, *optional*):
                The images of all rows in reading order; a row has as many as its `<image>` tokens ask for.
            alignment_levels (`torch.LongTensor` of shape `(B,)`, *optional*):
                Level of each row, 0..N-1; -1, or no levels at all, lets the gate decide.
            token_type_ids (`torch.LongTensor` of shape `(B, L)`, *optional*):
                1 for text that the gate reads, 0 for everything else; see `get_alignment_text_mask`.
            alignment_vectors (`torch.Tensor` of shape `(B, D)`, *optional*):
                What to put at `<align>`, instead of a level's vector or the gate's. `generate` computes them once, on
                the prompt, so that generated tokens cannot change them, with or without a cache.
            past_key_values, cache (`Cache`, *optional*):
                One of the two, as transformers calls it before and since 5.24.
                A row's alignment vector is made in the pass that fills its slot, and stays in the cache: later turns
                go on with it, also those with another image, and are what the whole chat gives with that vector.

        Raises:
            ValueError: if image tokens and features do not match, levels are out of range or of the wrong number, or
                an image comes to a cache that began without one, and so has no slot for the vector.
        """
        cache = _one_cache(past_key_values, cache)
        has_company = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        is_continued = cache is not None and cache.get_seq_length() > 0
        merged = self._merge_modalities(
            needs_image=(self.training or has_company) and not is_continued,
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            alignment_levels=alignment_levels,
            token_type_ids=token_type_ids,
            alignment_vectors=alignment_vectors,
            mm_encoder_outputs=mm_encoder_outputs,
            vision_feature_layer=vision_feature_layer,
            vision_feature_select_strategy=vision_feature_select_strategy,
        )
        rows_with_image = None
        if merged.image_tokens is not None:
            has_image = self._get_token_mask(self.config.image_token_id, input_ids, inputs_embeds).any(-1)
            # With vectors given it is one prompt, passed chunk by chunk
            rows_with_image = self._note_images(has_image, cache, may_begin=alignment_vectors is not None)
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=merged.inputs_embeds,
            **{CACHE_NAME: cache},
            **kwargs,
        )
        cache = getattr(outputs, CACHE_NAME)
        if rows_with_image is not None and cache is not None:
            cache.rows_with_image = rows_with_image
        return AlignGPTModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            **{CACHE_NAME: cache},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=merged.image_tokens,
            alignment_weights=merged.alignment_weights,
        )


STORED_NAMES = {  # LLaVA's on disk: in memory
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "vision_tower.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}


def _rename_stored_weights(module: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, *args) -> None:
    for key in list(state_dict):
        for stored, name in STORED_NAMES.items():
            if key.startswith(prefix + stored):
                state_dict[prefix + name + key.removeprefix(prefix + stored)] = state_dict.pop(key)


def _one_cache(past_key_values: Cache | None, cache: Cache | None) -> Cache | None:
    if past_key_values is not None and cache is not None:
        raise ValueError("The cache was passed twice, as past_key_values and as cache.")
    return past_key_values if cache is None else cache


def _select_positions(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """
    (B, L, D) at the positions whose logits are asked for: an integer is that many of the last (0: all); a tensor of
    positions (P,) for all rows or (B, P) for each; or a mask (B, L), which gives (positions, D). transformers has this
    as `slice_logits_to_keep` since 5.21; before it only knew the first two.
    """
    if isinstance(logits_to_keep, int):
        return hidden_states[:, slice(-logits_to_keep, None)]
    if logits_to_keep.ndim == 1:
        return hidden_states[:, logits_to_keep]
    if logits_to_keep.dtype == torch.bool:
        return hidden_states[logits_to_keep]
    return torch.take_along_dim(hidden_states, logits_to_keep[..., None], dim=1)


class AlignGPTForConditionalGeneration(AlignGPTPreTrainedModel, LlavaForConditionalGeneration, GenerationMixin):
    """AlignGPT with a language modelling head."""

    def __init__(self, config: AlignGPTConfig):
        # Not LlavaForConditionalGeneration.__init__, which builds a LlavaModel
        super(LlavaForConditionalGeneration, self).__init__(config)
        text_config = config.get_text_config()
        self.model = AlignGPTModel(config)
        self.lm_head = nn.Linear(text_config.hidden_size, text_config.vocab_size, bias=config.lm_head_bias)
        # A Trainer resumes by `load_state_dict` from what `save_pretrained` wrote, and would pass over names that it
        # does not find (huggingface/transformers#43701): the run would go on from the weights it once started from
        self.register_load_state_dict_pre_hook(_rename_stored_weights)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        alignment_levels: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        alignment_vectors: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | AlignGPTCausalLMOutputWithPast:
        """
        As [`AlignGPTModel.forward`], with `labels` (B, L; -100 where no loss is taken) and `logits_to_keep` as in
        [`~transformers.LlavaForConditionalGeneration`].

        Example, with the model of `make demo`:

        ```python
        import torch
        from PIL import Image

        from aligngpt import AlignGPTForConditionalGeneration, AlignGPTProcessor

        model = AlignGPTForConditionalGeneration.from_pretrained("demo_output/stage2")
        processor = AlignGPTProcessor.from_pretrained("demo_output/stage2")

        image = Image.open("demo_output/stage2/example.png")
        inputs = processor(images=image, text="USER: <image> what colour is top-left? ASSISTANT:", return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        print(outputs.logits.shape)  # (1, tokens, vocabulary)
        print(outputs.alignment_weights)  # (1, 7): the gate's mix of the local alignment embeddings
        ```
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=_one_cache(past_key_values, cache),
            inputs_embeds=inputs_embeds,
            alignment_levels=alignment_levels,
            token_type_ids=token_type_ids,
            alignment_vectors=alignment_vectors,
            vision_feature_layer=vision_feature_layer,
            vision_feature_select_strategy=vision_feature_select_strategy,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        logits = self.lm_head(_select_positions(outputs.last_hidden_state, logits_to_keep))
        softcap = getattr(self.config.get_text_config(), "final_logit_softcapping", None)  # Gemma 2
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.get_text_config().vocab_size, **kwargs
            )
        return AlignGPTCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            alignment_weights=outputs.alignment_weights,
        )

    def generate(
        self, inputs: torch.Tensor | None = None, generation_config: GenerationConfig | None = None, **kwargs: Any
    ) -> Any:
        """
        As [`~transformers.GenerationMixin.generate`]. The alignment vector is made once, from the prompt;
        `alignment_levels` (B,) asks for a level instead of the gate's choice, -1 in a row leaves it to the gate.
        `<image>`, `<align>` and unused rows of the token table are never generated.

        Prompts that end in an image (the template `plain`, that of stage 1) ask for captions, which end in a newline:
        such a batch also ends at `caption_eos_token_id` of the generation configuration, unless `eos_token_id` is
        passed.

        Example, with the model of `make demo`:

        ```python
        from aligngpt import AlignGPTForConditionalGeneration, AlignGPTProcessor

        model = AlignGPTForConditionalGeneration.from_pretrained("demo_output/stage2")
        processor = AlignGPTProcessor.from_pretrained("demo_output/stage2")

        picture = {"type": "image", "path": "demo_output/stage2/example.png"}
        question = {"type": "text", "text": "how many shapes are there?"}
        chat = [{"role": "user", "content": [picture, question]}]
        for level in (None, "worst", "best"):  # None: the gate
            inputs = processor.apply_chat_template(
                chat,
                alignment_level=level,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
            output = model.generate(**inputs, max_new_tokens=20)
            print(level, processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
        ```

        Raises:
            NotImplementedError: for `prefill_chunk_size` with a transformers before 5.23, which would give each chunk
                the whole prompt's images.
        """
        chunk_size = kwargs.get("prefill_chunk_size", getattr(generation_config, "prefill_chunk_size", None))
        if chunk_size is not None and not PREFILLS_IMAGES_IN_CHUNKS:
            raise NotImplementedError(
                f"prefill_chunk_size needs transformers 5.23; this is {transformers.__version__}."
            )
        input_ids = kwargs.get("input_ids", inputs)
        asks_for_captions = input_ids is not None and bool((input_ids[:, -1] == self.config.image_token_id).all())
        settings = self.generation_config if generation_config is None else generation_config
        caption_eos = getattr(settings, "caption_eos_token_id", None)
        if asks_for_captions and caption_eos is not None and "eos_token_id" not in kwargs:
            eos = settings.eos_token_id
            eos = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
            kwargs["eos_token_id"] = [*eos, *caption_eos]
        return super().generate(inputs, generation_config, **kwargs)

    def get_suppressed_tokens(self) -> list[int]:
        """
        Ids that `generate` never gives: `<image>`, `<align>`, and the rows of padding that composing adds behind all
        tokens, up to a multiple of 64. What the tokenizer uses of these rows a model cannot ask, but it shows: they
        begin as copies of one row, and training moves them together as long as none is a target. One that differs has
        become a token. Where the head is not at hand (adapted, sharded, offloaded), the placeholders alone: padding
        begins as the mean of all rows, whose logit, the mean of all logits, is never the largest.
        """
        token_ids = [self.config.image_token_id, self.config.align_token_id]
        weight = self.lm_head.weight
        is_whole = type(weight) is nn.Parameter and weight.ndim == 2 and not weight.is_meta
        if type(self.lm_head) is nn.Linear and is_whole:
            first = max(*token_ids, len(weight) - 64) + 1
            rows = weight[first:].detach().float()
            # Up to the rounding of training in half precision
            is_copy = (rows - rows[-1:]).norm(dim=-1) <= 0.01 * rows[-1:].norm(dim=-1)
            if is_copy.sum() > 1:
                token_ids += (first + is_copy.nonzero().flatten()).tolist()
        return sorted(token_ids)

    def _get_logits_processor(self, generation_config: GenerationConfig, *args, **kwargs) -> LogitsProcessorList:
        # Not stored: a list from the time of composing would keep tokens that are added later from being generated
        suppressed = {*(generation_config.suppress_tokens or []), *self.get_suppressed_tokens()}
        generation_config.suppress_tokens = sorted(suppressed)
        return super()._get_logits_processor(generation_config, *args, **kwargs)

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids=None, **model_kwargs
    ) -> tuple[torch.LongTensor, dict[str, Any]]:
        # The one place of `generate` that sees the whole prompt and its encoded images, once: the vectors are made
        # here, so that tokens appended later (one by one, or drafted by an assistant) cannot change them
        cache = model_kwargs.get(CACHE_NAME)
        if cache is not None and cache.get_seq_length() > 0:
            # A later turn: the vector of the chat is in the cache, and its slot not among the new tokens
            model_kwargs.pop("alignment_vectors", None)
        elif model_kwargs.get("alignment_vectors") is None:
            if cache is not None:
                cache.rows_with_image = None  # it may have been used before, and reset
            names = ("attention_mask", "inputs_embeds", "mm_encoder_outputs", "alignment_levels", "token_type_ids")
            inputs = {name: model_kwargs.get(name) for name in names}
            if inputs["inputs_embeds"] is None:
                inputs["input_ids"] = input_ids
            model_kwargs["alignment_vectors"] = self.model._merge_modalities(**inputs).alignment_vectors
        for name in ("alignment_levels", "token_type_ids"):
            model_kwargs.pop(name, None)
        return super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **model_kwargs)

    def prepare_inputs_for_generation(
        self, input_ids, inputs_embeds=None, is_first_iteration: bool | None = False, **kwargs
    ) -> dict[str, Any]:
        # `inputs_embeds` has to be named: `generate` looks for it in this signature
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            model_inputs.pop("alignment_vectors", None)  # as with pixels: they are in the cache
        return model_inputs

    def _get_candidate_generator(self, *args, assistant_model=None, model_kwargs=None, **kwargs):
        if assistant_model is not None and not isinstance(assistant_model, AlignGPTPreTrainedModel):
            # A draft model of another family knows no alignment vector, and refuses what it does not know
            model_kwargs = {name: value for name, value in model_kwargs.items() if name != "alignment_vectors"}
        return super()._get_candidate_generator(
            *args, assistant_model=assistant_model, model_kwargs=model_kwargs, **kwargs
        )


__all__ = ["AlignGPTForConditionalGeneration", "AlignGPTModel", "AlignGPTPreTrainedModel"]
