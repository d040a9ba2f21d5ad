"""Every family of language models and towers, against the parts as transformers loads them by themselves."""

import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BitImageProcessorPil,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    Siglip2ImageProcessorPil,
    Siglip2VisionConfig,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from aligngpt import AlignGPTForConditionalGeneration
from aligngpt.weights.composing import choose_chat_template, compose

from ...tolerance import assert_close  # noqa: TID252


SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = SIZES | {"vocab_size": 420, "num_key_value_heads": 2, "max_position_embeddings": 512}
TEXT |= {"initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LANGUAGE_MODELS = {
    "llama": LlamaConfig(**TEXT),
    "mistral": MistralConfig(**TEXT),
    "qwen2": Qwen2Config(**TEXT),
    "qwen2 tied": Qwen2Config(**TEXT, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**TEXT, head_dim=8),
    "gemma": GemmaConfig(**TEXT, head_dim=8),
    "gemma2": Gemma2Config(**TEXT, head_dim=8, final_logit_softcapping=3.0),
    "gemma3": Gemma3TextConfig(**TEXT, head_dim=8),
    "phi": PhiConfig(**TEXT),
    "phi3": Phi3Config(**TEXT),
}
VISION = SIZES | {"num_hidden_layers": 3}
DINO = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28, "patch_size": 7}
DINO_IMAGES = BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28})
TOWERS = {  # configuration, image processor, tokens of an image, tokens before them
    "siglip": (
        SiglipVisionConfig(**VISION, image_size=27, patch_size=8),  # a size that patches do not divide
        SiglipImageProcessorPil(size={"height": 27, "width": 27}),
        9,
        0,
    ),
    "siglip2": (
        Siglip2VisionConfig(**VISION, patch_size=8, num_patches=9),
        Siglip2ImageProcessorPil(patch_size=8, max_num_patches=9),
        9,
        0,
    ),
    "dinov2": (Dinov2Config(**DINO), DINO_IMAGES, 16, 1),
    "dinov2 with registers": (Dinov2WithRegistersConfig(**DINO, num_register_tokens=4), DINO_IMAGES, 16, 5),
}


@pytest.fixture
def make_text(text_folder, tmp_path):
    """A function that writes a language model of random weights with the tests' tokenizer; returns the folder."""

    def make(config):
        folder = tmp_path / "text"
        shutil.copytree(text_folder, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        if model.get_output_embeddings().bias is not None:
            torch.nn.init.normal_(model.get_output_embeddings().bias)
        model.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_language_model_keeps_its_logits(name, make_text, vision_folder, make_image, tmp_path):
    folder = make_text(LANGUAGE_MODELS[name])
    input_ids = torch.tensor([[1, 5, 9, 40, 77, 200, 300]])
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids).logits
    model, processor = compose(str(vision_folder), str(folder))
    model.save_pretrained(tmp_path / "saved")
    loaded = AlignGPTForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    for aligngpt in (model, loaded):
        with torch.no_grad():
            logits = aligngpt(input_ids=input_ids).logits
        assert logits.shape[-1] % 64 == 0
        assert_close(logits[..., :420], expected)
    inputs = processor(images=make_image(0), text="USER: <image>\nWhat? ASSISTANT:", return_tensors="pt")
    answers = [part.generate(**inputs, max_new_tokens=4, do_sample=False) for part in (model, loaded)]
    assert torch.equal(*answers)
    assert answers[0].shape[1] > inputs["input_ids"].shape[1]


def test_a_head_that_aligngpt_does_not_know_is_refused(make_text, vision_folder):
    folder = make_text(GraniteConfig(**TEXT, logits_scaling=7.0))
    with pytest.raises(ValueError, match="GraniteForCausalLM, AlignGPT's logits differ"):
        compose(str(vision_folder), str(folder))


def see(tower, pixel_values):
    """Hidden states of the last layer but one, by the tower alone; SigLIP 2 gets its patches from a slow loop."""
    if tower.config.model_type != "siglip2_vision_model":
        return tower(pixel_values, output_hidden_states=True).hidden_states[-2]
    rows = []
    for image in pixel_values.numpy():
        patches = [
            [image[c, y * 8 + dy, x * 8 + dx] for dy in range(8) for dx in range(8) for c in range(3)]
            for y in range(3)
            for x in range(3)
        ]
        rows.append(patches)
    mask, shapes = torch.ones(len(rows), 9, dtype=torch.long), torch.tensor([[3, 3]] * len(rows))
    inputs = {"pixel_values": torch.from_numpy(np.array(rows)), "pixel_attention_mask": mask, "spatial_shapes": shapes}
    return tower(**inputs, output_hidden_states=True).hidden_states[-2]


@pytest.fixture
def make_tower(tmp_path):
    def make(name):
        config, image_processor, *_ = TOWERS[name]
        torch.manual_seed(1)
        tower = AutoModel.from_config(config)
        for parameter in tower.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
        tower.save_pretrained(tmp_path / "vision")
        image_processor.save_pretrained(tmp_path / "vision")
        return tmp_path / "vision"

    return make


@pytest.mark.parametrize("name", TOWERS)
def test_a_towers_patches_are_all_that_the_projector_sees(name, make_tower, text_folder, make_image, tmp_path):
    _, _, num_tokens, num_before = TOWERS[name]
    folder = make_tower(name)
    model, processor = compose(str(folder), str(text_folder))
    assert model.config.image_seq_length == num_tokens
    inputs = processor(
        images=[make_image(0), make_image(1)], text=["<image> a", "<image> b c"], padding=True, return_tensors="pt"
    )
    assert (inputs["input_ids"] == model.config.image_token_id).sum(1).tolist() == [num_tokens] * 2
    model.save_pretrained(tmp_path / "saved")
    loaded = AlignGPTForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        patches = see(AutoModel.from_pretrained(folder).eval(), inputs["pixel_values"])[:, num_before:]
        for aligngpt in (model, loaded):
            expected = aligngpt.model.multi_modal_projector(patches)
            features = torch.stack(aligngpt.get_image_features(inputs["pixel_values"]).pooler_output)
            assert_close(features, expected)
    assert features.shape[1] == num_tokens
    answers = [part.generate(**inputs, max_new_tokens=3, do_sample=False) for part in (model, loaded)]
    assert torch.equal(*answers)
    model.train()(**inputs | {"labels": inputs["input_ids"]}).loss.backward()
    assert model.model.alignment_gate.linear_1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["clip", "siglip2", "dinov2 with registers"])
@pytest.mark.parametrize("scales", [[1, 2], [3, 1]])
def test_multi_scale_features_are_those_of_a_slow_loop(
    name, scales, make_tower, vision_folder, text_folder, make_image, tmp_path
):
    folder = vision_folder if name == "clip" else make_tower(name)
    model, processor = compose(str(folder), str(text_folder), vision_scales=scales)
    tower, before = AutoModel.from_pretrained(folder).eval(), 1 if name == "clip" else TOWERS[name][3]
    side = {"clip": 4, "siglip2": 3}.get(name, 4)
    size = {"clip": 16, "siglip2": 24}.get(name, 28)
    inputs = processor(images=make_image(0, (90, 70)), text="<image> a", return_tensors="pt")
    pixels = inputs["pixel_values"]
    assert pixels.shape == (1, 3, size * max(scales), size * max(scales))
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == side**2
    channels = []
    for scale in scales:
        picture = torch.nn.functional.interpolate(pixels, size=(size * scale, size * scale), mode="bicubic")
        grid = np.zeros((side * scale, side * scale, 32))
        for row in range(scale):
            for column in range(scale):
                tile = picture[:, :, row * size : (row + 1) * size, column * size : (column + 1) * size]
                with torch.no_grad():
                    tokens = see(tower, tile)[0, before:].numpy()
                for y in range(side):
                    for x in range(side):
                        grid[row * side + y, column * side + x] = tokens[y * side + x]
        pooled = np.zeros((side, side, 32))
        for y in range(side):
            for x in range(side):
                pooled[y, x] = grid[y * scale : (y + 1) * scale, x * scale : (x + 1) * scale].mean((0, 1))
        channels.append(pooled.reshape(side**2, 32))
    expected = torch.tensor(np.concatenate(channels, axis=1), dtype=torch.float32)
    model.save_pretrained(tmp_path / "saved")
    loaded = AlignGPTForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    assert loaded.model.multi_modal_projector.linear_1.in_features == 32 * len(scales)
    for aligngpt in (model, loaded):
        with torch.no_grad():
            (features,) = aligngpt.get_image_features(pixels).pooler_output
            assert_close(features, aligngpt.model.multi_modal_projector(expected))
    model.train()(input_ids=torch.tensor([[1, 5, 6]]), labels=torch.tensor([[1, 5, 6]])).loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad is not None


@pytest.mark.parametrize(("scales", "message"), [([], "positive integers"), ([0, 1], "positive integers")])
def test_impossible_scales_are_refused(scales, message, vision_folder, text_folder):
    with pytest.raises(ValueError, match=message):
        compose(str(vision_folder), str(text_folder), vision_scales=scales)


@pytest.mark.parametrize(
    ("token", "template"),
    [("<|im_end|>", "chatml"), ("<|eot_id|>", "llama3"), ("<end_of_turn>", "gemma"), ("<|end|>", "phi3")],
)
def test_the_template_is_told_from_the_tokens_and_answers_stop_at_its_end(
    token, template, text_folder, vision_folder, tmp_path
):
    from transformers import AutoTokenizer

    folder = tmp_path / "text"
    shutil.copytree(text_folder, folder, ignore=shutil.ignore_patterns("tokenizer*"))
    tokenizer = AutoTokenizer.from_pretrained(text_folder)
    assert choose_chat_template(tokenizer) == "vicuna_v1"
    tokenizer.add_special_tokens({"additional_special_tokens": [token]})
    tokenizer.save_pretrained(folder)
    assert choose_chat_template(tokenizer) == template
    model, processor = compose(str(vision_folder), str(folder))
    end = processor.tokenizer.convert_tokens_to_ids(token)
    assert end in model.generation_config.eos_token_id and 2 in model.generation_config.eos_token_id
    assert token in processor.apply_chat_template([{"role": "assistant", "content": "Yes."}])


def test_a_padding_token_beyond_the_old_table_is_no_obstacle(text_folder, vision_folder, tmp_path):
    """As with LLaMA-3, which has no padding token and whose embeddings take a `padding_idx`."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(text_folder)
    folder = tmp_path / "text"
    shutil.copytree(text_folder, folder, ignore=shutil.ignore_patterns("tokenizer*"))
    backend = tokenizer.backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    model, processor = compose(str(vision_folder), str(folder))
    assert processor.tokenizer.pad_token_id >= 420
    model.save_pretrained(tmp_path / "saved")
    loaded = AlignGPTForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert loaded.config.text_config.pad_token_id == processor.tokenizer.pad_token_id
    assert math.isfinite(loaded(input_ids=torch.tensor([[1, 5]])).logits.sum().item())


def test_a_table_with_rows_to_spare_keeps_them(make_text, vision_folder):
    """As with Qwen, whose table is larger than its tokenizer."""
    model, processor = compose(str(vision_folder), str(make_text(Qwen2Config(**TEXT | {"vocab_size": 700}))))
    assert len(model.get_input_embeddings().weight) == 704 > len(processor.tokenizer)


def test_a_picture_is_resized_as_the_tower_wants_it(make_tower, text_folder):
    _, processor = compose(str(make_tower("dinov2")), str(text_folder))
    pixels = processor(images=Image.new("RGB", (50, 20), (255, 0, 0)), text="<image>", return_tensors="pt")[
        "pixel_values"
    ]
    assert pixels.shape == (1, 3, 28, 28)
    expected = (1 - np.array(DINO_IMAGES.image_mean)[0]) / np.array(DINO_IMAGES.image_std)[0]
    assert pixels[0, 0, 14, 14] == pytest.approx(expected, abs=1e-4)
