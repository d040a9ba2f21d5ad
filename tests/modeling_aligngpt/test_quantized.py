"""Loading in 4 bits, on CPU."""

import pytest
import torch
from transformers import BitsAndBytesConfig

from aligngpt import AlignGPTForConditionalGeneration


@pytest.mark.parametrize(
    "skipped",
    [None, ["model.vision_tower", "model.multi_modal_projector", "model.alignment_gate", "lm_head"]],
    ids=["everything", "language model only"],
)
def test_a_model_in_4_bits_answers(checkpoint, processor, make_image, skipped):
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=skipped,
    )
    model = AlignGPTForConditionalGeneration.from_pretrained(checkpoint, quantization_config=config, device_map="cpu")
    quantised = {name: module for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    for module in quantised.values():  # its kernels for this kind of CPU need wider weights than ours
        module.support_avx512bf16_for_cpu = False
    assert "model.language_model.layers.0.mlp.up_proj" in quantised
    assert ("model.alignment_gate.linear_1" in quantised) == (skipped is None)
    inputs = processor(images=make_image(0), text="USER: <image>\nWhat is this? ASSISTANT:", return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    weights = model.get_alignment_weights(**inputs)
    assert weights.isfinite().all() and abs(weights.sum() - 1) < 0.01
    assert model.generate(**inputs, max_new_tokens=4).shape[1] > inputs["input_ids"].shape[1]
