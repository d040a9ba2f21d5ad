"""The exported LLaVA, in a process that never imports aligngpt, against the AlignGPT that it came from."""

import json
import shutil

import numpy
import pytest
import torch
from transformers import PhiConfig, PhiForCausalLM, Qwen2Config, Qwen2ForCausalLM

from aligngpt.weights.composing import compose
from aligngpt.weights.export_command import main
from aligngpt.weights.exporting import export_llava, mean_gate_weights

from ...tolerance import assert_close  # noqa: TID252


STRANGER = """
import sys
sys.modules["aligngpt"] = None
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained("llava").eval()
processor = AutoProcessor.from_pretrained("llava")
assert type(model).__name__ == "LlavaForConditionalGeneration" and type(processor).__name__ == "LlavaProcessor"
chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
text_only = [{"role": "user", "content": "Is it?"}]
prompts = [processor.apply_chat_template(messages, add_generation_prompt=True) for messages in (chat, text_only)]
saved = torch.load("inputs.pt")
image = Image.fromarray(saved.numpy())
outputs = {"prompts": prompts}
for name, options in (("image", {"images": image, "text": prompts[0]}), ("text", {"text": prompts[1]})):
    inputs = processor(**options, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        outputs[name] = {"ids": inputs["input_ids"], "logits": model(**inputs).logits}
    outputs[name]["answer"] = model.generate(**inputs, max_new_tokens=6, do_sample=False)
torch.save(outputs, "outputs.pt")
"""


def compare(folder, model, processor, image, run_python, **options):
    """The exported model elsewhere, and our own with `options` here, on a chat with an image and one without."""
    torch.save(torch.from_numpy(numpy.array(image)), folder / "inputs.pt")
    run_python(STRANGER, folder)
    outputs = torch.load(folder / "outputs.pt")
    for name, prompt in zip(("image", "text"), outputs["prompts"], strict=True):
        images = image if name == "image" else None
        inputs = processor(images=images, text=prompt, return_tensors="pt", add_special_tokens=False)
        assert torch.equal(inputs["input_ids"], outputs[name]["ids"])
        given = options if name == "image" else {}
        with torch.no_grad():
            logits = model(**inputs, **given).logits
        assert_close(outputs[name]["logits"], logits)
        answer = model.generate(**inputs, **given, max_new_tokens=6, do_sample=False)
        assert torch.equal(outputs[name]["answer"], answer)
    return outputs


def test_the_exported_llava_has_the_logits_of_the_mode_average(
    checkpoint, model, processor, make_image, run_python, tmp_path
):
    main([str(checkpoint), "--out", str(tmp_path / "llava")])
    model.config.alignment_mode = "average"
    outputs = compare(tmp_path, model, processor, make_image(0), run_python)
    generation_config = json.loads((tmp_path / "llava" / "generation_config.json").read_text())
    assert generation_config["suppress_tokens"] == list(range(420, 448)), "which LLaVA does not compute"
    assert outputs["prompts"][0].startswith("<s><align>") and "<align>" not in outputs["prompts"][1]
    adaptive = processor(
        images=make_image(0), text=outputs["prompts"][0], return_tensors="pt", add_special_tokens=False
    )
    model.config.alignment_mode = "adaptive"
    with torch.no_grad():
        assert (model(**adaptive).logits - outputs["image"]["logits"]).abs().max() > 1e-3  # the gate is lost


@pytest.mark.parametrize("content", ["<image>\nWhat is this?", [{"type": "text", "text": "<image>\nWhat is this?"}]])
def test_an_image_written_into_the_text_of_a_chat_gets_the_ids_of_one_given_apart(
    model, processor, make_image, content
):
    parts = [{"type": "image", "image": make_image(0)}, {"type": "text", "text": "What is this?"}]
    _, stock = export_llava(model, processor)
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    expected = processor.apply_chat_template([{"role": "user", "content": parts}], **options)["input_ids"]
    prompt = stock.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    ids = stock(images=make_image(0), text=prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert ids.tolist() == expected.tolist()
    text_only = stock.apply_chat_template([{"role": "user", "content": "Is it an <img>?"}])
    assert "<align>" not in text_only


def test_a_model_without_the_align_token_is_exported_without_it(model, processor, make_image, run_python, tmp_path):
    processor.add_align_token = False
    model.save_pretrained(tmp_path / "baseline")
    processor.save_pretrained(tmp_path / "baseline")
    main([str(tmp_path / "baseline"), "--out", str(tmp_path / "llava")])
    outputs = compare(tmp_path, model, processor, make_image(0), run_python)
    assert "<align>" not in outputs["prompts"][0]


def test_with_a_calibration_set_it_has_the_gates_mean_weights(
    checkpoint, model, processor, make_image, run_python, tmp_path
):
    records = []
    for index in range(5):
        make_image(index).save(tmp_path / f"{index}.png")
        records.append({"image": f"{index}.png", "messages": [{"role": "user", "content": f"What is {index}?"}]})
    records.append({"messages": [{"role": "user", "content": "No image?"}]})
    (tmp_path / "calibration.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    options = ["--calibration", str(tmp_path / "calibration.jsonl"), "--image_folder", str(tmp_path)]
    main([str(checkpoint), "--out", str(tmp_path / "llava"), *options, "--num_records", "4"])
    weights = []
    for index in range(4):
        content = [{"type": "image", "image": make_image(index)}, {"type": "text", "text": f"What is {index}?"}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            weights.append(model(**inputs).alignment_weights[0])
    mean = torch.stack(weights).mean(0)
    table = model.model.alignment_embeddings.weight.detach()
    vector = table[-1] + sum(weight * row for weight, row in zip(mean, table[:-1], strict=True))
    compare(tmp_path, model, processor, make_image(9), run_python, alignment_vectors=vector[None])
    assert mean.std() > 1e-3
    assert_close(mean_gate_weights(model, processor, records, 4, str(tmp_path)), mean, largest=1.0)


def test_a_calibration_set_without_images_is_refused(model, processor):
    records = [{"images": [], "messages": [{"role": "user", "content": "Blue?"}]}]
    with pytest.raises(ValueError, match="None of the calibration records"):
        mean_gate_weights(model, processor, records)


def write_text_model(text_folder, folder, model):
    shutil.copytree(text_folder, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    model.save_pretrained(folder)
    return str(folder)


SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"vocab_size": 420, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2}


def test_tied_embeddings_are_untied_so_that_the_head_stays(
    vision_folder, text_folder, make_image, run_python, tmp_path
):
    language_model = Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True))
    folder = write_text_model(text_folder, tmp_path / "text", language_model)
    model, processor = compose(str(vision_folder), folder, alignment_mode="average", chat_template="chatml")
    for part in (model, processor):
        part.save_pretrained(tmp_path / "aligngpt")
    main([str(tmp_path / "aligngpt"), "--out", str(tmp_path / "llava")])
    outputs = compare(tmp_path, model, processor, make_image(0), run_python)
    assert outputs["prompts"][0].startswith("<align><|im_start|>system")  # a template without BOS


def test_what_llava_cannot_hold_is_refused(vision_folder, text_folder, tmp_path):
    folder = write_text_model(text_folder, tmp_path / "phi", PhiForCausalLM(PhiConfig(**SIZES)))
    model, processor = compose(str(vision_folder), folder)
    torch.nn.init.normal_(model.lm_head.bias)
    with pytest.raises(ValueError, match="its tower or its head"):
        export_llava(model, processor)
    model, processor = compose(str(vision_folder), str(text_folder), vision_scales=[1, 2])
    with pytest.raises(ValueError, match="LLaVA's classes cannot run this model"):
        export_llava(model, processor)
