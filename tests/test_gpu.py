"""What needs a CUDA GPU: `pytest -m gpu`."""

import runpy
from pathlib import Path

import pytest
import torch
from transformers import BitsAndBytesConfig

from aligngpt import AlignGPTForConditionalGeneration


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]


@pytest.fixture
def inputs(processor, make_image):
    """A left-padded batch of two prompts with images and one without."""
    return processor(
        images=[[make_image(0)], [make_image(1), make_image(2)], []],
        text=["USER: <image>\nWhat is this? ASSISTANT:", "<image> and <image>: the same?", "Blue?"],
        padding=True,
        return_tensors="pt",
    )


def generate(model, inputs, **options):
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, **options}
    return model.generate(**inputs, **options)[:, -8:].cpu().tolist()


def test_the_gpu_gives_the_answers_of_the_cpu(model, inputs):
    assert generate(model, inputs) == generate(model.cuda(), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_nearly_the_weights_of_full_precision(model, inputs, dtype):
    expected = model.get_alignment_weights(**inputs)
    inputs = inputs.to("cuda", dtype)
    weights = model.to("cuda", dtype).get_alignment_weights(**inputs)
    torch.testing.assert_close(weights.float().cpu(), expected, atol=0.05, rtol=0.1)


def test_flash_attention_gives_nearly_the_logits_of_sdpa(checkpoint, inputs):
    pytest.importorskip("flash_attn")
    logits = []
    for implementation in ("sdpa", "flash_attention_2"):
        model = AlignGPTForConditionalGeneration.from_pretrained(
            checkpoint, dtype=torch.bfloat16, device_map="cuda", attn_implementation=implementation
        )
        batch = inputs.to("cuda", torch.bfloat16)
        with torch.no_grad():
            logits.append(model(**batch).logits[batch["attention_mask"].bool()])
    torch.testing.assert_close(*logits, atol=0.3, rtol=0.1)


def test_a_compiled_static_cache_gives_the_answers_of_the_dynamic_one(checkpoint, inputs):
    model = AlignGPTForConditionalGeneration.from_pretrained(checkpoint, device_map="cuda")
    assert generate(model, inputs, cache_implementation="static") == generate(model, inputs)


def test_a_model_in_4_bits_answers_with_its_gate_in_full_precision(checkpoint, inputs):
    skipped = ["model.vision_tower", "model.multi_modal_projector", "model.alignment_gate", "lm_head"]
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=skipped,
    )
    model = AlignGPTForConditionalGeneration.from_pretrained(
        checkpoint, quantization_config=config, dtype=torch.bfloat16, device_map="cuda"
    )
    quantised = {name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    assert quantised and all(name.startswith("model.language_model.") for name in quantised)
    assert len(generate(model, inputs)) == 3


@pytest.fixture(scope="module")
def training_memory():
    """The benchmark's functions."""
    return runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "training_memory.py"))


@pytest.fixture(scope="module")
def random_7b(training_memory, tmp_path_factory):
    """A model of Vicuna-7B's and CLIP ViT-L/14-336's size with random weights."""
    folder = tmp_path_factory.mktemp("random_7b")
    training_memory["write_model"](folder, "7b")
    return folder


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("recipe", "arguments", "gib_needed"),
    [
        ("pretrain_7b", ["--gradient_accumulation_steps", "1"], 30),
        ("sft_7b_lora", ["--per_device_train_batch_size", "8"], 40),
        ("sft_7b_qlora_24gb", ["--gradient_accumulation_steps", "2"], 20),
        ("sft_7b_qlora_t4", ["--gradient_accumulation_steps", "2"], 14),
        ("sft_7b", ["--per_device_train_batch_size", "4", "--optim", "adamw_bnb_8bit"], 70),
    ],
)
def test_a_recipe_trains_a_model_of_7b_within_the_memory_that_was_estimated(
    recipe, arguments, gib_needed, training_memory, random_7b
):
    total = torch.cuda.get_device_properties(0).total_memory / 2**30
    if total < gib_needed + 2:
        pytest.skip(f"needs {gib_needed} GiB, the GPU has {total:.0f}")
    result = training_memory["measure"](recipe, *arguments, "--dataloader_num_workers", "2", model=random_7b)
    assert torch.tensor(result["loss"]).isfinite() and result["gib"] < gib_needed
    print(f"{recipe} {' '.join(arguments)}: {result['gib']:.1f} GiB, {result['tokens_per_second']:.0f} tokens/s")  # noqa: T201
