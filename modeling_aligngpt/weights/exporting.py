"""
An AlignGPT as a stock LLaVA, for servers that know only that; `aligngpt export --to llava` in Python.

The alignment vector becomes one for all images, in the embedding row of `<align>`: the global embedding plus the mean
of the local ones (the mode `average`), or plus their mix by the gate's mean weights over the calibration records. What
is lost is the gate: it no longer looks at image and question. The exported chat template writes `<align>` after BOS
where a chat has an image, be it a part of a message or an `<image>` in its text; a prompt written by hand has to.
"""

from collections.abc import Iterable
from copy import deepcopy
from itertools import takewhile
from typing import Any

import torch
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from aligngpt import AlignGPTForConditionalGeneration
from aligngpt.processing import AlignGPTProcessor
from aligngpt.processing.chat_templates import is_interleaved
from aligngpt.processing.corpus.faults import Fault
from aligngpt.processing.corpus.images import open_image
from aligngpt.processing.corpus.records import read_record
from aligngpt.processing.corpus.samples import escape_placeholders


BOS = "{{- bos_token -}}"
WRITE_ALIGN = """{%- set found = namespace(image=false) -%}
{%- for message in messages -%}
    {%- if message.content is string -%}
        {%- if "<image>" in message.content -%}{%- set found.image = true -%}{%- endif -%}
    {%- else -%}
        {%- for part in message.content if part.type == "image" or "<image>" in (part.text or "") -%}
            {%- set found.image = true -%}
        {%- endfor -%}
    {%- endif -%}
{%- endfor -%}
{%- if found.image -%}{{- "<align>" -}}{%- endif -%}
"""


@torch.no_grad()
def export_llava(
    model: AlignGPTForConditionalGeneration, processor: AlignGPTProcessor, weights: torch.Tensor | None = None
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """
    A LLaVA whose logits are the model's with one alignment vector for all images, and its processor. The LLaVA shares
    the model's weights and takes over its embeddings: use the model no more.

    Args:
        model, processor: an AlignGPT.
        weights (`torch.Tensor` of shape `(N-1,)`, *optional*): of the local alignment embeddings; equal ones if not
            given, as in the mode `average`.

    Raises:
        ValueError: if LLaVA's classes cannot hold the model: several scales, or a tower or head that they do not know.
    """
    model.eval()
    table = model.model.alignment_embeddings.weight
    if weights is None:
        weights = table.new_full((len(table) - 1,), 1 / (len(table) - 1))
    vector = table[-1] + weights.to(table) @ table[:-1]
    size = model.config.image_size
    probe = processor(
        images=torch.rand(3, size, size, generator=torch.Generator().manual_seed(0)).mul(255).byte().numpy(),
        text="<image> a",
        return_tensors="pt",
    ).to(model.device, model.dtype)
    expected = model(**probe, alignment_vectors=vector[None]).logits

    known = LlavaConfig().to_dict()
    values = {name: value for name, value in model.config.to_dict().items() if name in known}
    for name in ("model_type", "architectures", "transformers_version"):
        values.pop(name, None)
    # The row of <align> in the head has to stay what it is
    values |= {"tie_word_embeddings": False, "image_seq_length": model.config.image_seq_length}
    values["text_config"] = values["text_config"] | {"tie_word_embeddings": False}
    config = LlavaConfig(**values)
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config).eval()
    for name in ("vision_tower", "multi_modal_projector", "language_model"):
        setattr(llava.model, name, getattr(model.model, name))
    llava.lm_head = torch.nn.Linear(*reversed(model.lm_head.weight.shape), bias=False, device="meta")
    llava.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    if processor.add_align_token:
        llava.get_input_embeddings().weight[model.config.align_token_id] = vector
    llava.generation_config, llava.config.dtype = deepcopy(model.generation_config), model.dtype
    suppressed = {*(llava.generation_config.suppress_tokens or []), *model.get_suppressed_tokens()}
    llava.generation_config.suppress_tokens = sorted(suppressed)  # which AlignGPT computes, and LLaVA does not
    try:
        logits = llava(**{name: probe[name] for name in ("input_ids", "attention_mask", "pixel_values")}).logits
        same = torch.allclose(logits.float(), expected.float(), rtol=1e-3, atol=1e-3)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"LLaVA's classes cannot run this model: {error}") from error
    if not same:
        raise ValueError("LLaVA's classes do not give this model's logits: its tower or its head is none they know.")

    templates = processor.chat_template
    template = templates["default"] if isinstance(templates, dict) else templates
    stock = LlavaProcessor(
        processor.image_processor,
        processor.tokenizer,
        patch_size=processor.patch_size,
        vision_feature_select_strategy=processor.vision_feature_select_strategy,
        num_additional_image_tokens=processor.num_additional_image_tokens,
        image_token=processor.image_token,
        chat_template=_write_align(template, processor) if processor.add_align_token else template,
    )
    return llava, stock


def _write_align(template: str, processor: AlignGPTProcessor) -> str:
    write = WRITE_ALIGN.replace("<align>", processor.align_token).replace("<image>", processor.image_token)
    return template.replace(BOS, BOS + write, 1) if BOS in template else write + template


@torch.no_grad()
def mean_gate_weights(
    model: AlignGPTForConditionalGeneration,
    processor: AlignGPTProcessor,
    records: Iterable[dict[str, Any] | Fault],
    num_records: int = 256,
    image_folder: str | None = None,
) -> torch.Tensor:
    """
    The gate's mean weights (N-1,) over the first questions of records with images.

    Raises:
        ValueError: if none of the records has an image.
        Fault: if a record cannot be read, or its image not be opened.
    """
    placeholders = (processor.align_token, processor.image_token)
    total, count, interleaved = 0, 0, is_interleaved(processor.chat_template)
    for record in records:
        sample = read_record(record, interleaved)
        if isinstance(sample, Fault):
            raise Fault(sample.kind, f"Record {sample.id}: {sample}", sample.id)
        question = list(takewhile(lambda message: message["role"] != "assistant", sample.messages))
        images = (open_image(image, image_folder)[0] for image in sample.images)
        question = [
            {
                "role": message["role"],
                "content": [
                    {"type": "image", "image": next(images)}
                    if part["type"] == "image"
                    else {"type": "text", "text": escape_placeholders(part["text"], placeholders)}
                    for part in message["content"]
                ],
            }
            for message in question
        ]
        if not any(part["type"] == "image" for message in question for part in message["content"]):
            continue
        inputs = processor.apply_chat_template(
            question, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(model.device, model.dtype)
        total, count = total + model.get_alignment_weights(**inputs)[0].float(), count + 1
        if count == num_records:
            break
    if count == 0:
        raise ValueError("None of the calibration records has an image.")
    return total / count
