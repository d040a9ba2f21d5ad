"""
AlignGPT (arXiv 2405.14129): LLaVA plus alignment embeddings and an alignment gate. Copied to the Hub with a model.

Shapes: B rows, L tokens, n images in the batch, T tokens per image, D hidden size of the language model, N levels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaModel, LlavaPreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.auto import AutoModel
from transformers.models.llava.modeling_llava import (
    LlavaCausalLMOutputWithPast,
    LlavaModelOutputWithPast,
    LlavaMultiModalProjector,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, torch_compilable_check
from transformers.utils.generic import can_return_tuple

from .configuration_aligngpt import AlignGPTConfig


# LLaVA checkpoints, old key names included, load into the modules that AlignGPT shares with LLaVA. transformers looks
# the renaming up by model type and class name and does not inherit it, so without this the LLM would stay random.
register_checkpoint_conversion_mapping("aligngpt", get_checkpoint_conversion_mapping("llava"), overwrite=True)
register_checkpoint_conversion_mapping(
    "AlignGPTModel", get_checkpoint_conversion_mapping("LlavaModel"), overwrite=True
)


@dataclass
class AlignGPTModelOutputWithPast(LlavaModelOutputWithPast):
    """
    LLaVA's outputs, and `alignment_weights` (B, N-1): the weights of the local alignment embeddings in equation 3;
    zero in rows where no gate ran (no image, or a level was given).
    """

    alignment_weights: torch.Tensor | None = None


@dataclass
class AlignGPTCausalLMOutputWithPast(LlavaCausalLMOutputWithPast):
    """LLaVA's outputs, and `alignment_weights` (B, N-1) as in [`AlignGPTModelOutputWithPast`]."""

    alignment_weights: torch.Tensor | None = None


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
    the T image tokens with the mean embedding of the text and W is a two-layer MLP.
    """

    def __init__(self, config: AlignGPTConfig):
        super().__init__()
        self.linear_1 = nn.Linear(config.image_seq_length, config.alignment_gate_hidden_size)
        self.act = ACT2FN["gelu"]
        self.linear_2 = nn.Linear(config.alignment_gate_hidden_size, config.num_alignment_levels - 1)

    def forward(
        self, image_features: torch.Tensor, text_embeddings: torch.Tensor, image_rows: torch.LongTensor
    ) -> torch.Tensor:
        """
        Weights of the local alignment embeddings, (B, N-1), from image features (n, T, D), mean text embeddings
        (B, D) and the row that each image belongs to (n,). The dot products of a row's images are averaged.
        """
        num_rows = text_embeddings.shape[0]
        scores = torch.einsum("ntd,nd->nt", image_features, text_embeddings[image_rows])  # (n, T)
        images_per_row = scores.new_zeros(num_rows).index_add(0, image_rows, torch.ones_like(scores[:, 0]))
        scores = scores.new_zeros(num_rows, scores.shape[1]).index_add(0, image_rows, scores)
        scores = scores / images_per_row.clamp(min=1).unsqueeze(-1)  # (B, T)
        logits = self.linear_2(self.act(self.linear_1(scores)))  # (B, N-1)
        # The weights mix rows of a table of half-precision vectors: rounding belongs after the softmax, not inside
        return nn.functional.softmax(logits, dim=-1, dtype=torch.float32).to(logits.dtype)


class AlignGPTPreTrainedModel(LlavaPreTrainedModel):
    config: AlignGPTConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, AlignmentEmbeddings):
            init.xavier_uniform_(module.weight)


class AlignGPTModel(AlignGPTPreTrainedModel, LlavaModel):
    """
    The backbone: vision tower, projector, alignment embeddings and gate, and the language model without its head.
    """

    def __init__(self, config: AlignGPTConfig):
        # Not LlavaModel.__init__: it ends in post_init(), which has to come once, after all modules exist
        super(LlavaModel, self).__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = LlavaMultiModalProjector(config)
        self.alignment_embeddings = AlignmentEmbeddings(config)
        self.alignment_gate = AlignmentGate(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_alignment_text_mask(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        alignment_text_mask: torch.BoolTensor | None = None,
    ) -> torch.BoolTensor:
        """
        The tokens that the gate reads, (B, L). With `alignment_gate_text="prompt"` those of type 1; with `"all"`, or
        without `token_type_ids`, all text but BOS: no padding, no placeholder, not the first token if that is BOS.
        An `alignment_text_mask` stands above both. Tokens past the end of a shorter mask are not read.

        Raises:
            ValueError: if the mask or the types do not fit the input.
        """
        num_rows, length = input_ids.shape if inputs_embeds is None else inputs_embeds.shape[:2]
        if alignment_text_mask is None and self.config.alignment_gate_text == "prompt" and token_type_ids is not None:
            alignment_text_mask = token_type_ids == 1
        if alignment_text_mask is not None:
            if alignment_text_mask.shape[0] != num_rows or alignment_text_mask.shape[1] > length:
                raise ValueError(
                    f"The text that the gate reads (token_type_ids) has shape {tuple(alignment_text_mask.shape)}, the "
                    f"input {(num_rows, length)}."
                )
            return nn.functional.pad(alignment_text_mask, (0, length - alignment_text_mask.shape[1]))

        device = (input_ids if inputs_embeds is None else inputs_embeds).device
        text_mask = torch.ones((num_rows, length), dtype=torch.bool, device=device)
        if attention_mask is not None and attention_mask.ndim == 2:
            text_mask = attention_mask[:, -length:].to(device, torch.bool)
        is_first = text_mask & (text_mask.cumsum(-1) == 1)
        bos_token_id = self.config.get_text_config().bos_token_id
        if bos_token_id is not None:
            text_mask = text_mask & ~(is_first & self._get_token_mask(bos_token_id, input_ids, inputs_embeds))
        for token_id in (self.config.image_token_id, self.config.align_token_id):
            text_mask = text_mask & ~self._get_token_mask(token_id, input_ids, inputs_embeds)
        return text_mask

    def _get_token_mask(
        self, token_id: int, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor | None
    ) -> torch.BoolTensor:
        """Where a token stands, (B, L); found by its embedding if there are no ids."""
        if input_ids is not None:
            return input_ids == token_id
        token = torch.full((), token_id, dtype=torch.long, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(token)).all(-1)

    def get_local_weights(
        self,
        image_features: torch.Tensor,
        image_rows: torch.LongTensor,
        inputs_embeds: torch.Tensor,
        text_mask: torch.BoolTensor,
    ) -> torch.Tensor:
        """
        The weights alpha of the local embeddings in equation 3, (B, N-1), as `config.alignment_mode` says, from image
        tokens (n, T, D), the row of each image (n,), text embeddings (B, L, D) and what the gate reads of them (B, L).
        """
        num_rows, num_local = inputs_embeds.shape[0], self.config.num_alignment_levels - 1
        if self.config.alignment_mode == "global":
            return inputs_embeds.new_zeros(num_rows, num_local)
        if self.config.alignment_mode == "average":
            return inputs_embeds.new_full((num_rows, num_local), 1 / num_local)
        text_mask = text_mask.to(inputs_embeds.device, inputs_embeds.dtype)
        num_tokens = text_mask.sum(-1, keepdim=True).clamp(min=1)
        text_embeddings = torch.einsum("bl,bld->bd", text_mask, inputs_embeds) / num_tokens  # (B, D)
        return self.alignment_gate(image_features, text_embeddings, image_rows)

    def get_alignment_vectors(
        self,
        inputs_embeds: torch.Tensor,
        image_mask: torch.BoolTensor,
        image_features: torch.Tensor | None,
        text_mask: torch.BoolTensor | None,
        alignment_levels: torch.LongTensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.BoolTensor]:
        """
        The alignment vector of each row: H_l where a level is given (equation 1), otherwise the mix of equation 3.

        Args:
            inputs_embeds (`torch.Tensor` of shape `(B, L, D)`): the text embeddings.
            image_mask (`torch.BoolTensor` of shape `(B, L)`): where image tokens stand.
            image_features (`torch.Tensor` of shape `(n, T, D)`, *optional*): projected image tokens.
            text_mask (`torch.BoolTensor` of shape `(B, L)`, *optional*): what the gate reads, needed with images.
            alignment_levels (`torch.LongTensor` of shape `(B,)`, *optional*): levels; -1 for "the gate decides".

        Returns:
            vectors (B, D), weights of the local embeddings (B, N-1), and which rows have a vector (B,).

        Raises:
            ValueError: if the number of levels is not the number of rows, or a level is out of range.
        """
        num_rows, num_levels = inputs_embeds.shape[0], self.config.num_alignment_levels
        embeddings = self.alignment_embeddings(torch.arange(num_levels, device=inputs_embeds.device))  # (N, D)
        vectors, weights = inputs_embeds.new_zeros(num_rows, 1), inputs_embeds.new_zeros(num_rows, num_levels - 1)
        has_vector = image_mask.any(-1)
        if image_features is None:
            has_vector = torch.zeros_like(has_vector)
        else:
            # Images are numbered in reading order: an image's row comes after all rows that are full before it
            images_until_row = (image_mask.sum(-1) // image_features.shape[1]).cumsum(-1)  # (B,)
            image_numbers = torch.arange(image_features.shape[0], device=image_mask.device).unsqueeze(-1)
            image_rows = (images_until_row <= image_numbers).sum(-1).clamp(max=num_rows - 1)  # (n,)
            weights = self.get_local_weights(image_features, image_rows, inputs_embeds, text_mask)
            weights = weights * has_vector.unsqueeze(-1)
            vectors = weights.to(embeddings.dtype) @ embeddings[:-1]
            if self.config.alignment_mode != "local":
                vectors = vectors + embeddings[-1]
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
            given = alignment_levels >= 0
            vectors = torch.where(given.unsqueeze(-1), embeddings[alignment_levels.clamp(min=0)], vectors)
            weights = torch.where(given.unsqueeze(-1), 0.0, weights)
            has_vector = has_vector | given
        return vectors, weights, has_vector

    def _merge_modalities(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        alignment_levels: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        alignment_text_mask: torch.BoolTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **vision_kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Embeddings with images and alignment vectors in place (B, L, D), image features (n, T, D), weights."""
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        token_embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds

        image_outputs = (mm_encoder_outputs or {}).get("image")
        if pixel_values is not None:
            if image_outputs is not None:
                raise ValueError("You cannot specify both pixel_values and mm_encoder_outputs at the same time")
            image_outputs = self.get_image_features(pixel_values=pixel_values, return_dict=True, **vision_kwargs)
        if image_outputs is None and alignment_levels is None:
            return token_embeds, None, token_embeds.new_zeros(len(token_embeds), self.config.num_alignment_levels - 1)

        merged_embeds, image_features, text_mask = token_embeds, None, None
        image_mask = self._get_token_mask(self.config.image_token_id, input_ids, token_embeds)
        if image_outputs is not None:
            image_features = torch.stack(tuple(image_outputs.pooler_output)).to(
                token_embeds.device, token_embeds.dtype
            )
            if image_features.shape[1] != self.config.image_seq_length:
                raise ValueError(
                    f"The vision tower gave {image_features.shape[1]} tokens per image, but the alignment gate was "
                    f"built for image_seq_length={self.config.image_seq_length}: the processor's image size does not "
                    "fit this model."
                )
            scatter_mask = self.get_placeholder_mask(input_ids, token_embeds, image_features)  # raises on mismatch
            torch_compilable_check(
                (image_mask.sum(-1) % self.config.image_seq_length == 0).all(),
                lambda: (
                    f"Image features and image tokens do not match: an image has {self.config.image_seq_length} "
                    f"tokens, the rows have {image_mask.sum(-1).tolist()}."
                ),
            )
            merged_embeds = token_embeds.masked_scatter(scatter_mask, image_features)
            text_mask = self.get_alignment_text_mask(
                input_ids, attention_mask, token_embeds, token_type_ids, alignment_text_mask
            )
        vectors, weights, has_vector = self.get_alignment_vectors(
            token_embeds, image_mask, image_features, text_mask, alignment_levels
        )
        align_mask = self._get_token_mask(self.config.align_token_id, input_ids, token_embeds)
        align_mask = (align_mask & has_vector.unsqueeze(-1)).unsqueeze(-1)  # (B, L, 1)
        merged_embeds = torch.where(align_mask, vectors.to(merged_embeds.dtype).unsqueeze(1), merged_embeds)
        return merged_embeds, image_features, weights

    def get_alignment_weights(self, **inputs) -> torch.Tensor:
        """
        `alignment_weights` (B, N-1) of a batch as the processor returns it, without running the language model.
        Inputs and errors are those of `forward`.
        """
        return self._merge_modalities(**inputs)[2]

    def _connect_unused_modules(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """
        `inputs_embeds`, unchanged in value, with tower, projector, gate and table in the graph of a batch without
        images. Ranks that share a model have to run the same modules, so a blank image goes through all of them:
        without it a text-only batch on one rank hangs DDP, FSDP and ZeRO.
        """
        size = self.config.vision_config.image_size
        blank_image = inputs_embeds.new_zeros(1, getattr(self.config.vision_config, "num_channels", 3), size, size)
        image_features = torch.stack(tuple(self.get_image_features(blank_image, return_dict=True).pooler_output))
        text_mask = torch.ones(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)
        vectors, _, _ = self.get_alignment_vectors(
            inputs_embeds, text_mask, image_features.to(inputs_embeds), text_mask, None
        )
        return inputs_embeds + 0 * (vectors.mean() + image_features.mean().to(vectors.dtype))

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
        alignment_text_mask: torch.BoolTensor | None = None,
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
            alignment_text_mask (`torch.BoolTensor` of shape `(B, at most L)`, *optional*):
                The text that the gate reads, whatever the types and `config.alignment_gate_text` say. `generate` fixes
                it on the prompt, so that the gate never reads generated tokens, with or without a cache.

        Raises:
            ValueError: if image tokens and features do not match, or levels are out of range or of the wrong number.
        """
        merged_embeds, image_features, alignment_weights = self._merge_modalities(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            alignment_levels=alignment_levels,
            token_type_ids=token_type_ids,
            alignment_text_mask=alignment_text_mask,
            mm_encoder_outputs=mm_encoder_outputs,
            vision_feature_layer=vision_feature_layer,
            vision_feature_select_strategy=vision_feature_select_strategy,
        )
        if image_features is None and self.training:
            merged_embeds = self._connect_unused_modules(merged_embeds)
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=merged_embeds,
            **kwargs,
        )
        return AlignGPTModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_features,
            alignment_weights=alignment_weights,
        )


class AlignGPTForConditionalGeneration(AlignGPTPreTrainedModel, LlavaForConditionalGeneration, GenerationMixin):
    """AlignGPT with a language modelling head."""

    def __init__(self, config: AlignGPTConfig):
        # Not LlavaForConditionalGeneration.__init__, which builds a LlavaModel
        super(LlavaForConditionalGeneration, self).__init__(config)
        text_config = config.get_text_config()
        self.model = AlignGPTModel(config)
        self.lm_head = nn.Linear(text_config.hidden_size, text_config.vocab_size, bias=False)
        self.post_init()

    def get_alignment_weights(self, **inputs) -> torch.Tensor:
        """See [`AlignGPTModel.get_alignment_weights`]: `model.get_alignment_weights(**processor(...))`, (B, N-1)."""
        return self.model.get_alignment_weights(**inputs)

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
        alignment_text_mask: torch.BoolTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | AlignGPTCausalLMOutputWithPast:
        """
        As [`AlignGPTModel.forward`], with `labels` (B, L; -100 where no loss is taken) and `logits_to_keep` as in
        [`~transformers.LlavaForConditionalGeneration`].
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            alignment_levels=alignment_levels,
            token_type_ids=token_type_ids,
            alignment_text_mask=alignment_text_mask,
            vision_feature_layer=vision_feature_layer,
            vision_feature_select_strategy=vision_feature_select_strategy,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.get_text_config().vocab_size, **kwargs
            )
        return AlignGPTCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            alignment_weights=outputs.alignment_weights,
        )

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids=None, **model_kwargs
    ) -> tuple[torch.LongTensor, dict[str, Any]]:
        # The one place of `generate` that sees the whole prompt once: what the gate reads is decided here, so that
        # tokens appended later (one by one, or drafted by an assistant) cannot change the alignment vector
        if model_kwargs.get("alignment_text_mask") is None:
            model_kwargs["alignment_text_mask"] = self.model.get_alignment_text_mask(
                input_ids if input_ids is not None and input_ids.shape[1] > 0 else None,
                model_kwargs.get("attention_mask"),
                model_kwargs.get("inputs_embeds"),
                model_kwargs.pop("token_type_ids", None),
            )
        return super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **model_kwargs)

    def prepare_inputs_for_generation(self, input_ids, is_first_iteration: bool | None = False, **kwargs):
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            # As with pixels: the alignment vector is in the cache, and the placeholder not among the new tokens
            model_inputs.pop("alignment_levels", None)
            model_inputs.pop("alignment_text_mask", None)
        return model_inputs


__all__ = ["AlignGPTForConditionalGeneration", "AlignGPTModel", "AlignGPTPreTrainedModel"]
