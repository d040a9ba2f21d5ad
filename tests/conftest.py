"""Tiny parts that the tests share: a SentencePiece tokenizer, a CLIP tower, a LLaMA, and an AlignGPT made of them."""

import copy
import io
import json
import os
import subprocess
import sys


# Before transformers is imported: nothing here may reach for a network
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

import pytest
import sentencepiece
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from aligngpt import AlignGPTProcessor
from aligngpt.weights.composing import compose


torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))

CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: What is this? ASSISTANT: It is a cat on a mat.",
    "The quick brown fox jumps over the lazy dog. What colour is the bus? Red, of course.",
    "Two birds sit on a wire, and the sky is blue. Answer with one word or number: 12, 345, 6789!",
]


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    """A LLaMA checkpoint as Vicuna's folder looks: weights, `tokenizer.model`, `tokenizer_config.json`."""
    folder = tmp_path_factory.mktemp("llama")
    with io.BytesIO() as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS * 20),
            model_writer=model,
            vocab_size=420,
            model_type="bpe",
            byte_fallback=True,
            split_digits=True,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            minloglevel=2,
        )
        (folder / "tokenizer.model").write_bytes(model.getvalue())
    tokenizer_config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "model_max_length": 2048,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=420,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        # Wide enough weights that every part of the input shows in the logits
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vision_folder(tmp_path_factory):
    """A CLIP vision tower of 4x4 patches with its image processor."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=16,
        patch_size=4,
        initializer_factor=5.0,
    )
    CLIPVisionModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def composed(vision_folder, text_folder):
    """Model and processor that no test changes; `model` and `processor` are copies to do as one likes with."""
    torch.manual_seed(2)
    model, processor = compose(str(vision_folder), str(text_folder), alignment_gate_hidden_size=16)
    with torch.no_grad():  # a gate and vectors that matter
        model.model.alignment_embeddings.weight.mul_(3)
        for parameter in (*model.model.alignment_gate.parameters(), *model.model.multi_modal_projector.parameters()):
            parameter.normal_(std=0.1)
    return model.eval(), processor


@pytest.fixture(scope="session")
def checkpoint(composed, tmp_path_factory):
    """The folder of a saved AlignGPT."""
    folder = tmp_path_factory.mktemp("aligngpt")
    for part in composed:
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def model(composed):
    return copy.deepcopy(composed[0])


@pytest.fixture
def processor(checkpoint):
    return AlignGPTProcessor.from_pretrained(checkpoint)


@pytest.fixture(scope="session")
def make_image():
    """A function that makes a noisy RGB image, the same for the same seed."""

    def make(seed: int, size: tuple[int, int] = (20, 12)) -> Image.Image:
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
        return Image.fromarray(pixels.numpy())

    return make


@pytest.fixture(scope="session")
def run_python():
    """A function that runs Python code in a process of its own, outside the checkout, and returns what it printed."""

    def run(code: str, folder, base_environment=os.environ, **environment) -> str:
        result = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env={**base_environment, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run
