"""What `chat`, `serve` and `page` load, and how."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from aligngpt.processing.command_output import Mistakes
from aligngpt.serving.answering import Assistant
from aligngpt.serving.arguments import ModelArguments, Sampling
from aligngpt.serving.loading import load_model


def load(name, **options):
    return load_model(ModelArguments(str(name), device="cpu", **options))


def test_a_folder_is_loaded_for_inference_in_the_precision_that_is_asked_for(checkpoint):
    model, processor = load(checkpoint)
    assert not model.training and model.dtype == torch.float32 and processor.num_alignment_levels == 8
    assert load(checkpoint, dtype="bfloat16")[0].dtype == torch.bfloat16


def test_a_processor_that_was_saved_without_n_learns_it_from_the_model(checkpoint, tmp_path, parts):
    parts[0].save_pretrained(tmp_path)
    processor = load(checkpoint)[1]
    processor.num_alignment_levels = None
    processor.save_pretrained(tmp_path)
    assert load(tmp_path)[1].num_alignment_levels == 8


@pytest.mark.parametrize(("option", "kind"), [("load_in_4bit", "Linear4bit"), ("load_in_8bit", "Linear8bitLt")])
def test_only_the_language_model_is_in_few_bits(option, kind, checkpoint, make_image):
    model, processor = load(checkpoint, dtype="float32", **{option: True})
    quantised = {name: module for name, module in model.named_modules() if type(module).__name__ == kind}
    for module in quantised.values():  # its kernels for some CPUs need wider weights than ours
        module.support_avx512bf16_for_cpu = False
    assert quantised and all(name.startswith("model.language_model.layers.") for name in quantised)
    parts = [{"type": "image", "image": make_image(1)}, {"type": "text", "text": "What is this?"}]
    inputs = Assistant(model, processor).prepare([[{"role": "user", "content": parts}]])
    with torch.inference_mode():
        found, whole = model(**inputs).logits, load(checkpoint)[0](**inputs).logits
    assert 0.4 < torch.cosine_similarity(found.flatten(), whole.flatten(), dim=0) < 0.999  # random weights, wide ones


def test_the_folder_of_an_adapter_is_its_base_with_the_adapter(checkpoint, parts, model, tmp_path, make_image):
    torch.manual_seed(0)
    targets = r"model\.language_model\.layers\.\d+\.self_attn\.(q|v)_proj"
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(checkpoint)
    adapted.save_pretrained(tmp_path)
    parts[1].save_pretrained(tmp_path)
    content = [{"type": "image", "image": make_image(1)}, {"type": "text", "text": "What is this?"}]
    found, processor = load(tmp_path)
    inputs = Assistant(found, processor).prepare([[{"role": "user", "content": content}]])
    with torch.inference_mode():
        torch.testing.assert_close(found(**inputs).logits, adapted.eval()(**inputs).logits)
        assert not torch.allclose(parts[0](**inputs).logits, adapted(**inputs).logits)
    assert Assistant(found, processor).answer(inputs, Sampling(max_new_tokens=4))
    with pytest.raises(Mistakes, match="merge it first"):
        load(tmp_path, revision="v1")


def test_a_model_of_another_kind_is_told(text_folder):
    with pytest.raises(ValueError, match="a model of type 'llama', no AlignGPT"):
        load(text_folder)
