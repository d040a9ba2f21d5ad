# Copyright 2026 the aligngpt authors. Licensed under the Apache License, Version 2.0 (see LICENSE):
# http://www.apache.org/licenses/LICENSE-2.0
"""
Processor of AlignGPT: from images and text to model inputs. Copied to the Hub: imports only numpy, transformers and
the sibling that opens images.
"""

import inspect
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import transformers
from transformers import BatchFeature, LlavaProcessor
from transformers.image_utils import ImageInput, get_image_size, make_flat_list_of_images, to_numpy_array
from transformers.processing_utils import MultiModalData
from transformers.tokenization_utils_base import BatchEncoding, PreTokenizedInput, TextInput

from .image_loading_aligngpt import open_images


# A user's text in which control tokens are plain text: since transformers 5.23
CAN_SANITIZE = "sanitize_control_tokens" in inspect.signature(LlavaProcessor.apply_chat_template).parameters


class AlignGPTProcessor(LlavaProcessor):
    r"""
    Wraps an image processor and a tokenizer. Beside what [`~transformers.LlavaProcessor`] does, it

    - puts `<align>`, the slot of the alignment vector, right after BOS (first of all where the tokenizer has no BOS)
      in every text with an image;
    - returns `token_type_ids`: 1 for the text that the alignment gate reads, 0 for BOS, padding, placeholders,
      assistant turns of a chat, and all of a text without an image;
    - refuses `<image>` and `<align>` in the text of chat messages, and names the sample with the wrong number of
      images.

    Args:
        image_processor ([`~transformers.LlavaImageProcessor`]): resizes, and with `do_pad` first pads to a square.
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]): has `<image>` and `<align>` among its tokens.
        patch_size (`int`): of the vision tower.
        vision_feature_select_strategy (`str`): `"default"` drops the tower's first token, `"full"` keeps it.
        chat_template (`str` or `dict[str, str]`, *optional*): a Jinja template; stored with the processor.
        image_token (`str`, *optional*, defaults to `"<image>"`): placeholder of an image.
        align_token (`str`, *optional*, defaults to `"<align>"`): placeholder of the alignment vector.
        num_additional_image_tokens (`int`, *optional*, defaults to 0): e.g. 1 for a tower with a CLS token.
        add_align_token (`bool`, *optional*, defaults to `True`): with `False` texts get no `<align>`, and the model
            that is trained on them is a LLaVA: the baseline that AlignGPT is compared with.
        num_alignment_levels (`int`, *optional*): N of the model, which `apply_chat_template` needs to check a level.

    Raises:
        ValueError: if the tokenizer lacks one of the placeholders.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        patch_size=None,
        vision_feature_select_strategy=None,
        chat_template=None,
        image_token="<image>",
        align_token="<align>",
        num_additional_image_tokens=0,
        add_align_token=True,
        num_alignment_levels: int | None = None,
        **kwargs,
    ):
        super().__init__(
            image_processor,
            tokenizer,
            patch_size=patch_size,
            vision_feature_select_strategy=vision_feature_select_strategy,
            chat_template=chat_template,
            image_token=image_token,
            num_additional_image_tokens=num_additional_image_tokens,
        )
        self.add_align_token = add_align_token
        self.num_alignment_levels = num_alignment_levels
        self.align_token = getattr(tokenizer, "align_token", None) or align_token
        self.align_token_id = tokenizer.convert_tokens_to_ids(self.align_token)
        for name in ("image_token", "align_token"):
            token_ids = tokenizer.encode(getattr(self, name), add_special_tokens=False)
            if len(token_ids) != 1 or token_ids[0] == tokenizer.unk_token_id:
                raise ValueError(
                    f"{getattr(self, name)} is not one token of the tokenizer (ids {token_ids}): add it as a special "
                    "token, as `aligngpt.processing.tokenization.prepare_tokenizer` does."
                )

    if TYPE_CHECKING:  # transformers gives these no types

        def decode(self, *args: Any, **kwargs: Any) -> str: ...

        def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]: ...

    def to_dict(self) -> dict[str, Any]:
        # Saving would add it to this object, and loading drop it again
        return {**super().to_dict(), "auto_map": {"AutoProcessor": "processing_aligngpt.AlignGPTProcessor"}}

    @property
    def model_input_names(self) -> list[str]:
        return list(dict.fromkeys([*super().model_input_names, "token_type_ids"]))

    def __call__(
        self,
        images: ImageInput | None = None,
        text: TextInput | PreTokenizedInput | list[TextInput] | list[PreTokenizedInput] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """
        Model inputs of a batch: `input_ids`, `attention_mask` and `token_type_ids` (batch, length), `pixel_values`
        (images, channels, height, width).

        Args:
            images: PIL images, encoded bytes, paths, URLs, base64, arrays or tensors (one image, or with 4 axes
                several); flat, or a list per text (`[]` or None for none). Each becomes the same upright RGB picture,
                see [`~aligngpt.processing.image_conversion_aligngpt.load_rgb_image`]. Only arrays of floats together
                with `do_rescale=False` are left as they are: somebody has rescaled them.
            text: one `<image>` per image in each.
            kwargs: those of [`~transformers.LlavaProcessor`], such as `return_tensors="pt"` and `padding=True`.

        Example, with the model of `make demo`:

        ```python
        from aligngpt import AlignGPTProcessor

        processor = AlignGPTProcessor.from_pretrained("demo_output/stage2")
        inputs = processor(
            images=["demo_output/stage2/example.png"],
            text=["<image> what colour is top-left?"],
            padding=True,
            return_tensors="pt",
        )
        print({name: tuple(tensor.shape) for name, tensor in inputs.items()})
        ```

        Raises:
            ValueError: if an image cannot be used (an `ImageError`, whose `kind` says why), a text has not as many
                `<image>` as images, or truncation cut placeholders off; the message names the image or the sample.
        """
        options = {**kwargs.get("images_kwargs", {}), **kwargs}
        do_rescale = options.get("do_rescale")
        do_rescale = getattr(self.image_processor, "do_rescale", True) if do_rescale is None else do_rescale
        layout = options.get("input_data_format")
        images = open_images(images, do_rescale, None if layout is None else layout == "channels_first")
        if do_rescale:  # pictures now, whose layout transformers before 5.23 would take for the arrays'
            kwargs.pop("input_data_format", None)
            if "images_kwargs" in kwargs:
                images_kwargs = kwargs["images_kwargs"].items()
                kwargs["images_kwargs"] = {name: value for name, value in images_kwargs if name != "input_data_format"}
        if text is not None:
            text = [text] if isinstance(text, str) else list(text)
            text = self._continue_prompt(text, kwargs) or self._write_bos(text, kwargs)
        inputs = super().__call__(images=images, text=text, **kwargs)
        if "input_ids" in inputs:
            inputs["token_type_ids"] = self._create_token_type_ids(inputs["input_ids"], inputs.get("attention_mask"))
        return inputs

    def _continue_prompt(self, text: list[str], kwargs: dict[str, Any]) -> list[str] | None:
        """
        Completions that TRL tokenises apart from their prompts (DPO, prompt-completion data), or None if the texts are
        no such. A SentencePiece tokenizer writes a space before every text; beside the one that a completion begins
        with, that is one token which no chat as a whole has.
        """
        adds_special_tokens = kwargs.get("add_special_tokens", kwargs.get("text_kwargs", {}).get("add_special_tokens"))
        is_completion = all(isinstance(sample, str) and sample.startswith(" ") for sample in text)
        normalizer = self.tokenizer.backend_tokenizer.normalizer if self.tokenizer.is_fast else None
        writes_space = normalizer is not None and normalizer.normalize_str("a") == "\u2581a"
        return (
            [sample[1:] for sample in text]
            if adds_special_tokens is False and is_completion and writes_space
            else None
        )

    def _write_bos(self, text: list[str], kwargs: dict[str, Any]) -> list[str]:
        """
        Texts of which all or none start with BOS; where they do, the tokenizer is told not to add another one. Chat
        templates write BOS, and not all callers (TRL's GRPO) know that they do.
        """
        bos_token = self.tokenizer.bos_token
        if not bos_token or not any(isinstance(sample, str) and sample.startswith(bos_token) for sample in text):
            return text
        if kwargs.get("add_special_tokens", kwargs.get("text_kwargs", {}).get("add_special_tokens", True)):
            kwargs["add_special_tokens"] = False
            if self.tokenizer("").input_ids[:1] == [self.tokenizer.bos_token_id]:
                return [sample if sample.startswith(bos_token) else bos_token + sample for sample in text]
        return text

    def validate_inputs(self, images=None, text=None, **kwargs):
        if isinstance(text, list) and all(isinstance(sample, str) for sample in text):
            nested = isinstance(images, list) and all(isinstance(row, (list, tuple)) for row in images)
            if nested and len(images) != len(text):
                raise ValueError(
                    f"The {self.image_token} tokens in the prompts should be the same as the number of images: there "
                    f"are {len(images)} lists of images for {len(text)} texts."
                )
            if images is not None and not nested:
                num_found = sum(sample.count(self.image_token) for sample in text)
                if num_found != (num_given := len(make_flat_list_of_images(images))):
                    raise ValueError(
                        f"The {self.image_token} tokens in the prompts should be the same as the number of images: "
                        f"there are {num_found} {self.image_token} tokens and {num_given} images."
                    )
            for index, sample in enumerate(text):
                found = sample.count(self.image_token)
                expected = len(images[index]) if nested else 0 if images is None else found
                if found != expected:
                    raise ValueError(
                        f"Sample {index} has {found} {self.image_token} in its text but {expected} images: write one "
                        f"{self.image_token} per image. The text starts with {sample[:80]!r}."
                    )
                start = self._get_align_position(sample)
                may_have = self.add_align_token and found > 0 and sample.startswith(self.align_token, start)
                if sample.count(self.align_token) != may_have:
                    raise ValueError(
                        f"Sample {index} has a {self.align_token} in its text. The processor puts it into every text "
                        "with an image, right after BOS (with add_align_token=False into none); it can stand nowhere "
                        "else. Remove it."
                    )
        super().validate_inputs(images=images, text=text, **kwargs)

    def _get_align_position(self, sample: str) -> int:
        bos_token = self.tokenizer.bos_token
        return len(bos_token) if bos_token and sample.startswith(bos_token) else 0

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        height, width = get_image_size(to_numpy_array(image_inputs["pixel_values"][image_idx]))
        return self.image_token * self._get_num_image_tokens(height, width)

    def _get_num_image_tokens(self, height: int, width: int) -> int:
        num_patches = (height // self.patch_size) * (width // self.patch_size)
        return num_patches + self.num_additional_image_tokens - (self.vision_feature_select_strategy == "default")

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs) -> MultiModalData:
        """Tokens per image for images of these sizes (height, width): the same for all, they are resized."""
        if image_sizes is None:
            return MultiModalData()
        crop_size = (
            self._merge_kwargs(self.valid_processor_kwargs, **kwargs)["images_kwargs"].get("crop_size")
            or self.image_processor.crop_size
        )
        num_tokens = self._get_num_image_tokens(crop_size["height"], crop_size["width"])
        return MultiModalData(
            num_image_tokens=[num_tokens] * len(image_sizes), num_image_patches=[1] * len(image_sizes)
        )

    def get_text_with_replacements(self, text: list[str], *args, **kwargs):
        text, batch_offsets = super().get_text_with_replacements(text, *args, **kwargs)
        for index, offsets in enumerate(batch_offsets):
            start = self._get_align_position(text[index])
            if not self.add_align_token or not offsets or text[index].startswith(self.align_token, start):
                continue
            text[index] = text[index][:start] + self.align_token + text[index][start:]
            # Recorded as a replacement of nothing, so that spans of the template (assistant turns) move along
            end = start + len(self.align_token)
            for offset in offsets:
                offset["new_span"] = tuple(position + len(self.align_token) for position in offset["new_span"])
            offsets.insert(
                0,
                {
                    "type": "text",
                    "span": (start, start),
                    "new_span": (start, end),
                    "text": "",
                    "replacement": self.align_token,
                },
            )
        return text, batch_offsets

    def _check_special_mm_tokens(self, text: list[str], text_inputs: BatchEncoding, modalities: list[str]):
        super()._check_special_mm_tokens(text, text_inputs, modalities)
        for index, input_ids in enumerate(text_inputs["input_ids"] if self.add_align_token else []):
            if self.image_token_id in input_ids and self.align_token_id not in input_ids:
                raise ValueError(
                    f"Sample {index} lost its {self.align_token} in truncation. Truncate on the right, raise "
                    "`max_length`, or disable truncation."
                )

    def _create_token_type_ids(self, input_ids, attention_mask=None):
        """1 for the text that the gate reads, in the container (lists, array, tensor) of `input_ids`."""
        rows = []
        for index, row in enumerate(input_ids):
            row = np.asarray(row)
            is_text = (
                np.ones_like(row, dtype=bool) if attention_mask is None else np.asarray(attention_mask[index]) == 1
            )
            first = int(is_text.argmax()) if row.size else 0
            is_text &= ~np.isin(row, [self.image_token_id, self.align_token_id])
            if row.size and row[first] == self.tokenizer.bos_token_id:
                is_text[first] = False
            rows.append((is_text & (row == self.align_token_id).any()).astype(int).tolist())
        if hasattr(input_ids, "new_tensor"):
            return input_ids.new_tensor(rows)
        return np.asarray(rows) if isinstance(input_ids, np.ndarray) else rows

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        alignment_level: int | str | Sequence[int | str | None] | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        As [`~transformers.ProcessorMixin.apply_chat_template`]. With `tokenize` and `return_dict`, `token_type_ids`
        are 0 in assistant turns (the template's generation spans), so that the gate reads the same text in training
        as at inference. transformers cannot tell the spans together with `continue_final_message` or
        `sanitize_control_tokens`; there the gate reads all text of the prompt.

        Args:
            alignment_level: asks for a level instead of the gate's choice: 0 (or `"worst"`) to N-1 (or `"best"`), and
                -1, `"auto"` or None for the gate; one for all conversations, or a sequence of one for each. It is
                returned as `alignment_levels` (conversations,), which the model takes. Without an image it has no
                effect, as there is no alignment vector.

        Example, with the model of `make demo`:

        ```python
        from aligngpt import AlignGPTProcessor

        processor = AlignGPTProcessor.from_pretrained("demo_output/stage2")
        picture = {"type": "image", "path": "demo_output/stage2/example.png"}
        chats = [[{"role": "user", "content": [picture, {"type": "text", "text": text}]}] for text in ("a?", "b?")]
        inputs = processor.apply_chat_template(
            chats,
            alignment_level=["best", None],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        print(inputs["alignment_levels"])  # 7, and -1: the gate decides
        ```

        Raises:
            ValueError: if a message has a part that is neither text nor image, which templates would pass over, or
                its text contains a placeholder and `sanitize_control_tokens` is not set; if a level is not one of
                the model's, or the output has no place for it.
        """
        if kwargs.get("sanitize_control_tokens") and not CAN_SANITIZE:
            raise ValueError(f"sanitize_control_tokens needs transformers 5.23; this is {transformers.__version__}.")
        self._check_parts(conversation, refuse_placeholders=not kwargs.get("sanitize_control_tokens"))
        has_inputs = kwargs.get("tokenize", False) and kwargs.get("return_dict", False)
        levels = None if alignment_level is None else self._read_levels(alignment_level, conversation)
        if levels is not None and not has_inputs:
            raise ValueError(
                "alignment_level is no text, but an input of the model: pass tokenize=True and return_dict=True, or "
                "give alignment_levels to the model yourself."
            )
        returns_masks = kwargs.pop("return_assistant_tokens_mask", False)
        marks_turns = (
            has_inputs
            and not kwargs.get("sanitize_control_tokens")
            and not kwargs.get("continue_final_message")
            and self.tokenizer.is_fast
            and re.search(r"\{%-?\s*generation\b", self._find_chat_template(chat_template))
        )
        if kwargs.get("processor_kwargs") is not None:
            kwargs["processor_kwargs"] = dict(kwargs["processor_kwargs"])  # the parent class writes to it
        inputs = super().apply_chat_template(
            conversation, chat_template, return_assistant_tokens_mask=bool(returns_masks or marks_turns), **kwargs
        )
        if marks_turns:
            self._leave_out_answers(inputs)
            if not returns_masks:
                inputs.pop("assistant_masks")
        if levels is not None:
            is_tensor = hasattr(inputs["input_ids"], "new_tensor")
            inputs["alignment_levels"] = inputs["input_ids"].new_tensor(levels) if is_tensor else levels
        return inputs

    def _find_chat_template(self, name: str | None) -> str:
        """The template that is rendered: of a name, as it was passed, or the default; empty if there is none."""
        if isinstance(self.chat_template, dict):
            return self.chat_template.get(name or "default", name or "")
        return name or self.chat_template or ""

    def _read_levels(self, level: int | str | Sequence[int | str | None], conversation: Any) -> list[int]:
        """One level for each conversation, -1 where the gate decides."""
        is_batch = bool(conversation) and (
            isinstance(conversation[0], (list, tuple)) or hasattr(conversation[0], "content")
        )
        num_rows = len(conversation) if is_batch else 1
        levels = list(level) if isinstance(level, Sequence) and not isinstance(level, str) else [level] * num_rows
        if len(levels) != num_rows:
            raise ValueError(f"There are {len(levels)} alignment levels for {num_rows} conversations.")
        return [self.read_alignment_level(level) for level in levels]

    def read_alignment_level(self, level: int | str | None) -> int:
        """
        An alignment level as `apply_chat_template` takes it, as the model does: 0..N-1, or -1 for the gate.

        Raises:
            ValueError: if it is not one of the model's; the message names the range.
        """
        num_levels = self.num_alignment_levels
        if level is None or level == "auto":
            return -1
        if level == "best" and num_levels is None:
            raise ValueError("This processor does not know how many levels there are: set num_alignment_levels.")
        number = {"worst": 0, "best": -1 if num_levels is None else num_levels - 1}.get(level, level)
        is_integer = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
        if not is_integer or number < -1 or (num_levels is not None and number >= num_levels):
            last = "N-1" if num_levels is None else num_levels - 1
            raise ValueError(
                f'The alignment level is {level!r}; it can be 0..{last}, "worst", "best", or -1 ("auto") to let the '
                "gate decide."
            )
        return int(number)

    def _check_parts(self, conversation, refuse_placeholders: bool):
        batched = bool(conversation) and isinstance(conversation[0], (list, tuple))
        for index, messages in enumerate(conversation if batched else [conversation]):
            for number, message in enumerate(getattr(messages, "messages", messages)):
                name = f"Message {number} of conversation {index}"
                content = message.get("content") or []
                for part in [] if isinstance(content, str) else content:
                    if part.get("type") not in ("text", "image", "image_url"):
                        raise ValueError(
                            f"{name} has a part of type {part.get('type')!r}; known are text, image and image_url."
                        )
                texts = [content] if isinstance(content, str) else [part.get("text") or "" for part in content]
                for token in (self.image_token, self.align_token) if refuse_placeholders else ():
                    if any(token in text for text in texts):
                        raise ValueError(
                            f"{name} has a literal {token} in its text, which would be taken for a placeholder. Give "
                            'images as {"type": "image"} entries of the content; if the text is really about the '
                            "token, take it out or pass sanitize_control_tokens=True."
                        )

    def _leave_out_answers(self, inputs: BatchFeature) -> None:
        """Sets `token_type_ids` to 0 where `assistant_masks` are 1; both are lists, arrays or tensors."""
        types, masks = inputs["token_type_ids"], inputs["assistant_masks"]
        if isinstance(types, list):
            pairs = zip(types, masks, strict=True)
            types = [[int(t and not m) for t, m in zip(row, mask, strict=True)] for row, mask in pairs]
        else:
            types = types * (1 - masks)
        inputs["token_type_ids"] = types

    def _adjust_assistant_masks_indices(self, processed_dict, generation_indices: list[list[int]]):
        # Plain lists: the parent class compares offsets token by token, which is slow on tensors
        processed_dict["offset_mapping"] = [np.asarray(row).tolist() for row in processed_dict["offset_mapping"]]
        return super()._adjust_assistant_masks_indices(processed_dict, generation_indices)


__all__ = ["AlignGPTProcessor"]
