"""
The authors' checkpoints and LLaVA's become AlignGPT, against a forward pass in plain torch, written from the paper and
from what their code does.
"""

import json
import os
import shutil
from pkgutil import resolve_name

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionModel,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from aligngpt.__main__ import COMMANDS
from aligngpt.processing.command_output import Mistakes
from aligngpt.weights.converting import convert

from ...hub_server import LoopbackHub  # noqa: TID252
from ...tolerance import assert_close  # noqa: TID252


PROMPTS = ["USER: <image>\nWhat is this? ASSISTANT:", "<image> Answer with one word:  red", "Is it <image>?"]


class Authors:
    """
    A checkpoint in the authors' format, and what their code computes with it: the gate reads all text but BOS, the
    vector goes right after BOS, image tokens stand where `<image>` was.
    """

    def __init__(self, text_folder, vision_folder):
        torch.manual_seed(7)
        self.language = LlamaForCausalLM.from_pretrained(text_folder).eval()
        self.tower = CLIPVisionModel.from_pretrained(vision_folder).eval()
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(text_folder / "tokenizer.model"))
        self.added = {
            "model.mm_projector.0.weight": torch.randn(32, 32) * 0.2,
            "model.mm_projector.0.bias": torch.randn(32) * 0.2,
            "model.mm_projector.2.weight": torch.randn(32, 32) * 0.2,
            "model.mm_projector.2.bias": torch.randn(32) * 0.2,
            "model.align_indicators.indicator_embs": torch.randn(8, 32),
            "model.gated_weight_layer.mlp.0.weight": torch.randn(20, 16),
            "model.gated_weight_layer.mlp.0.bias": torch.randn(20),
            "model.gated_weight_layer.mlp.2.weight": torch.randn(7, 20),
            "model.gated_weight_layer.mlp.2.bias": torch.randn(7),
        }

    def part(self, name):
        (tensor,) = (tensor for key, tensor in self.added.items() if name in key)
        return tensor

    def ids(self, prompt):
        """Chunks of ids around the images, each tokenised as a string of its own."""
        first, *rest = (self.pieces.encode(chunk) for chunk in prompt.split("<image>"))
        return [[1, *first], *rest]

    @torch.no_grad()
    def embed(self, prompt, pixel_values):
        """The row of embeddings that the language model gets, and the gate's weights."""
        words = self.language.get_input_embeddings()
        chunks = [words(torch.tensor(ids, dtype=torch.long)) for ids in self.ids(prompt)]
        if pixel_values is None:
            return chunks[0], None
        image = self.tower(pixel_values[None], output_hidden_states=True).hidden_states[-2][0, 1:]
        image = image @ self.part("mm_projector.0.weight").T + self.part("mm_projector.0.bias")
        image = torch.nn.functional.gelu(image)
        image = image @ self.part("mm_projector.2.weight").T + self.part("mm_projector.2.bias")
        text = torch.cat(chunks)[1:].mean(0)
        hidden = self.part("mlp.0.weight") @ (image @ text) + self.part("mlp.0.bias")
        gate = self.part("mlp.2.weight") @ torch.nn.functional.gelu(hidden) + self.part("mlp.2.bias")
        weights, table = gate.softmax(-1), self.part("indicator_embs")
        vector = table[7] + sum(weights[level] * table[level] for level in range(7))
        return torch.cat([chunks[0][:1], vector[None], chunks[0][1:], image, *chunks[1:]]), weights

    @torch.no_grad()
    def logits(self, prompt, pixel_values):
        return self.language(inputs_embeds=self.embed(prompt, pixel_values)[0][None]).logits[0]

    @torch.no_grad()
    def answer(self, prompt, pixel_values, num_tokens):
        """Greedy, over the whole row again for each token; the vector stays what it was for the prompt."""
        row, answer = self.embed(prompt, pixel_values)[0], []
        for _ in range(num_tokens):
            answer.append(int(self.language(inputs_embeds=row[None]).logits[0, -1].argmax()))
            row = torch.cat([row, self.language.get_input_embeddings()(torch.tensor(answer[-1:]))])
        return answer


@pytest.fixture(scope="module")
def authors(text_folder, vision_folder):
    return Authors(text_folder, vision_folder)


@pytest.fixture
def source(authors, text_folder, vision_folder, tmp_path):
    """The authors' folder: two pickled shards, an index, their config.json, the tokenizer."""
    folder = tmp_path / "source"
    shutil.copytree(text_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    state = {name: tensor.clone() for name, tensor in authors.language.state_dict().items()} | authors.added
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.rand(4)
    state["model.vision_tower.vision_tower.vision_model.embeddings.class_embedding"] = torch.rand(32)
    names = sorted(state)
    shards = {f"pytorch_model-0000{number}-of-00002.bin": names[number - 1 :: 2] for number in (1, 2)}
    for file, keys in shards.items():
        torch.save({key: state[key] for key in keys}, folder / file)
    weight_map = {key: file for file, keys in shards.items() for key in keys}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaForCausalLM"],
        "mm_vision_tower": str(vision_folder),
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_hidden_size": 32,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": None,
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": 300,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run(command, *arguments):
    """`aligngpt` with these arguments, in this process, with the exceptions that it tells users in a line."""
    resolve_name(COMMANDS[command][0])([str(argument) for argument in arguments])


def load(folder):
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


@pytest.fixture
def converted(source, tmp_path):
    run("convert", source, "--out", tmp_path / "out")
    return load(tmp_path / "out")


def test_logits_weights_and_ids_are_those_of_the_authors_code(converted, authors, make_image):
    model, processor = converted
    for seed, prompt in enumerate(PROMPTS):
        inputs = processor(images=make_image(seed), text=prompt, return_tensors="pt")
        first, *rest = authors.ids(prompt)
        image, align = model.config.image_token_id, model.config.align_token_id
        assert inputs["input_ids"][0].tolist() == [1, align, *first[1:], *[image] * 16, *sum(rest, [])]
        with torch.no_grad():
            outputs = model(**inputs)
        pixels = inputs["pixel_values"][0]
        expected = authors.logits(prompt, pixels)
        assert_close(outputs.logits[0, :, :420], expected)
        weights = authors.embed(prompt, pixels)[1]
        assert_close(outputs.alignment_weights[0], weights, largest=1.0)
        assert weights.max() - weights.min() > 0.01
    inputs = processor(text="Is the sky blue?", return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0, :, :420]
    assert_close(logits, authors.logits("Is the sky blue?", None))


def test_greedy_answers_are_those_of_the_authors_code_one_by_one_and_in_a_batch(converted, authors, make_image):
    model, processor = converted
    model.generation_config.eos_token_id = None  # the authors' loop below knows no end
    texts = [*PROMPTS, "Is the sky blue?"]
    images = [[make_image(seed)] for seed in range(3)] + [[]]
    batch = processor(images=images, text=texts, padding=True, return_tensors="pt")
    length = batch["input_ids"].shape[1]
    answers = model.generate(**batch, max_new_tokens=12, do_sample=False)[:, length:].tolist()
    for row, prompt in enumerate(texts):
        pixels = batch["pixel_values"][row] if row < 3 else None
        assert answers[row] == authors.answer(prompt, pixels, 12)
        assert len(set(answers[row])) > 1


def test_settings_of_the_authors_configuration_arrive(converted, text_folder):
    model, processor = converted
    assert model.config.alignment_gate_text == "all" and model.config.vision_feature_layer == -2
    assert (model.config.num_alignment_levels, model.config.alignment_gate_hidden_size) == (8, 20)
    assert processor.image_processor.do_pad and processor.tokenizer.model_max_length == 300
    assert model.config.text_config.max_position_embeddings == 512 and model.config.text_config.model_type == "llama"


@pytest.mark.parametrize("aspect_ratio", ["square", None])
def test_without_padding_in_the_authors_configuration_there_is_none(aspect_ratio, source):
    config = json.loads((source / "config.json").read_text()) | {"image_aspect_ratio": aspect_ratio}
    (source / "config.json").write_text(json.dumps(config))
    assert not convert(str(source)).processor.image_processor.do_pad


def test_every_weight_is_accounted_for(source, authors):
    conversion = convert(str(source))
    index = json.loads((source / "pytorch_model.bin.index.json").read_text())["weight_map"]
    assert sorted([*conversion.used, *conversion.left_aside]) == sorted(index)
    assert len(conversion.left_aside) == 2 and conversion.new == []


def test_safetensors_in_half_precision_and_a_tower_from_elsewhere(source, authors, vision_folder, tmp_path):
    state = {}
    for file in sorted(source.glob("*.bin")):
        state |= {name: tensor.half() for name, tensor in torch.load(file).items()}
    for file in source.glob("pytorch_model*"):
        file.unlink()
    save_file(state, source / "model.safetensors")
    config = json.loads((source / "config.json").read_text()) | {"mm_vision_tower": "nobody/has-it"}
    (source / "config.json").write_text(json.dumps(config))
    run("convert", source, "--vision", vision_folder, "--out", tmp_path / "out")
    model, _ = load(tmp_path / "out")
    assert model.dtype == torch.float16
    assert torch.equal(model.model.alignment_embeddings.weight, authors.part("indicator_embs").half())


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_a_stage_1_file_fills_a_composed_model(prefix, authors, checkpoint, tmp_path):
    names = ("mm_projector", "align_indicators")
    state = {
        name.replace("model.", prefix, 1): tensor
        for name, tensor in authors.added.items()
        if any(part in name for part in names)
    }
    torch.save(state, tmp_path / "mm_projector_align.bin")
    run("convert", tmp_path / "mm_projector_align.bin", "--base", checkpoint, "--out", tmp_path / "out")
    (model, _), (base, _) = load(tmp_path / "out"), load(checkpoint)
    expected = {
        "model.multi_modal_projector.linear_1.weight": "mm_projector.0.weight",
        "model.multi_modal_projector.linear_1.bias": "mm_projector.0.bias",
        "model.multi_modal_projector.linear_2.weight": "mm_projector.2.weight",
        "model.multi_modal_projector.linear_2.bias": "mm_projector.2.bias",
        "model.alignment_embeddings.weight": "indicator_embs",
    }
    for name, tensor in base.state_dict().items():
        other = authors.part(expected[name]) if name in expected else tensor
        assert torch.equal(model.state_dict()[name], other), name


def test_a_private_checkpoint_is_converted_from_the_hub(source, authors, run_python, tmp_path):
    code = f"""
from huggingface_hub import HfApi
from aligngpt.weights.convert_command import main
api = HfApi()
api.create_repo("authors", private=True)
api.upload_folder(repo_id="tester/authors", folder_path={str(source)!r})
main(["tester/authors", "--out", "out"])
"""
    with LoopbackHub() as hub:
        run_python(code, tmp_path, hub.env(token="write", cache=tmp_path / "home"))
    model, _ = load(tmp_path / "out")
    assert torch.equal(model.model.alignment_embeddings.weight, authors.part("indicator_embs"))


@pytest.fixture
def llava(text_folder, vision_folder, tmp_path):
    """A LLaVA-1.5 as transformers saves it, with its own added tokens."""
    language, tower = LlamaForCausalLM.from_pretrained(text_folder), CLIPVisionModel.from_pretrained(vision_folder)
    processor = AutoProcessor.from_pretrained(text_folder)  # a tokenizer
    processor.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
    image, pad = processor.convert_tokens_to_ids(["<image>", "<pad>"])
    text_config = language.config.to_dict() | {"vocab_size": 448, "pad_token_id": pad}
    config = LlavaConfig(vision_config=tower.config, text_config=text_config, image_token_index=image)
    torch.manual_seed(4)
    model = LlavaForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    size = {"height": 16, "width": 16}
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size).save_pretrained(tmp_path / "llava")
    return model


def test_of_a_llava_only_the_new_parts_are_new(llava, make_image, tmp_path):
    run("convert", tmp_path / "llava", "--out", tmp_path / "out")
    model, processor = load(tmp_path / "out")
    state, new = model.state_dict(), []
    for name, tensor in state.items():
        if name in llava.state_dict():
            assert torch.equal(tensor, llava.state_dict()[name]), name
        else:
            new.append(name)
    assert new and all("alignment_" in name for name in new)
    assert llava.state_dict().keys() <= state.keys()
    assert convert(str(tmp_path / "llava")).new == sorted(new)
    assert (model.config.image_token_id, model.config.align_token_id) == (llava.config.image_token_id, 422)
    text = processor(text="Is the sky blue?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert_close(model(input_ids=text).logits, llava(input_ids=text).logits)
    inputs = processor(images=make_image(0), text="<image> a", return_tensors="pt")
    assert (inputs["input_ids"] == 422).sum() == 1
    assert model.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]


class Code:
    """A pickle that leaves a file when it is run."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def damage(kind, source, tmp_path):
    """Damages the source; returns what the message has to say."""
    first = source / "pytorch_model-00001-of-00002.bin"
    state = torch.load(first)
    if kind == "missing shard":
        first.unlink()
        return FileNotFoundError, "lacks .*pytorch_model-00001-of-00002.bin"
    if kind == "cut off":
        first.write_bytes(first.read_bytes()[:5000])
        return ValueError, "may be damaged"
    if kind == "code":
        torch.save({"x": Code(tmp_path / "run")}, first)
        return ValueError, "something else than tensors"
    if kind == "no tensors":
        torch.save({"x": 5}, first)
        return ValueError, "something else than a dictionary of tensors"
    if kind == "settings":
        config = json.loads((source / "config.json").read_text()) | {"mm_projector_type": "linear"}
        (source / "config.json").write_text(json.dumps(config))
        return ValueError, "mm_projector_type is 'linear'"
    if kind == "no configuration":
        (source / "config.json").unlink()
        return FileNotFoundError, "no config.json"
    index = json.loads((source / "pytorch_model.bin.index.json").read_text())
    if kind == "extra weight":
        state["surprise.weight"] = torch.zeros(3)
        index["weight_map"]["surprise.weight"] = first.name
    if kind == "extra layer":
        state["model.layers.7.mlp.up_proj.weight"] = torch.zeros(64, 32)
    (name,) = (name for name in index["weight_map"] if "gated_weight_layer.mlp.0.weight" in name)
    file = source / index["weight_map"][name]
    state = state if file == first else torch.load(file)
    if kind == "wrong shape":
        state[name] = torch.zeros(20, 9)
    if kind == "missing weight":
        del state[name]
        del index["weight_map"][name]
    if kind == "index and shard disagree":
        del state[name]
    if kind == "language weight missing":
        (shard,) = {index["weight_map"].pop("model.norm.weight")}
        rest = torch.load(source / shard)
        del rest["model.norm.weight"]
        torch.save(rest, source / shard)
        (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        return ValueError, "missing or unexpected weights.*norm"
    torch.save(state, first if kind.startswith("extra") else file)
    (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return ValueError, {
        "extra weight": "no AlignGPT has: surprise.weight",
        "extra layer": "missing or unexpected weights.*layers.7",
        "wrong shape": r"gated_weight_layer.mlp.0.weight .* has shape \(20, 9\); .* would be \(20, 16\)",
        "missing weight": "lacks gated_weight_layer.*0.*weight",
        "index and shard disagree": "lack weights that .* names: .*gated_weight_layer",
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        *("missing shard", "cut off", "code", "no tensors", "settings", "no configuration", "extra weight"),
        *("extra layer", "wrong shape", "missing weight", "index and shard disagree", "language weight missing"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_leaves_nothing(kind, source, tmp_path):
    error, message = damage(kind, source, tmp_path)
    with pytest.raises(error, match=message):
        run("convert", source, "--out", tmp_path / "out")
    assert os.listdir(tmp_path) == ["source"]  # no output, nothing half-written, and no code was run


def test_a_disk_that_is_full_at_the_end_leaves_nothing(source, tmp_path, run_python):
    code = f"""
import resource, signal, sys
from aligngpt.weights.convert_command import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # of a file: small ones fit, the weights do not
try:
    main([{str(source)!r}, "--out", "out"])
except Exception as error:
    print(type(error).__name__, error)
"""
    assert "Error" in run_python(code, tmp_path)
    assert not (tmp_path / "out").exists() and sorted(os.listdir(tmp_path)) == ["source"]


def test_what_is_no_checkpoint_of_a_known_kind_is_refused(text_folder, tmp_path):
    with pytest.raises(ValueError, match="neither an AlignGPT by the authors"):
        convert(str(text_folder))
    with pytest.raises(FileNotFoundError, match="no folder of a checkpoint"):
        convert(str(tmp_path / "nothing"))
    (tmp_path / "mm_projector_align.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="--base"):
        convert(str(tmp_path / "mm_projector_align.bin"))


def test_an_output_folder_with_something_in_it_is_not_written_over(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(Mistakes, match="there already, and not empty"):
        run("convert", source, "--out", tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["precious"]


def test_the_compose_command_writes_what_compose_makes(vision_folder, text_folder, tmp_path):
    parts = ("--vision", vision_folder, "--text", text_folder)
    run("compose", *parts, "--out", tmp_path / "out", "--num_alignment_levels", 4, "--vision_scales", 1, 2)
    model, processor = load(tmp_path / "out")
    assert (model.config.num_alignment_levels, model.config.vision_scales) == (4, [1, 2])
    expected = load_file(text_folder / "model.safetensors")["model.norm.weight"]
    assert torch.equal(model.model.language_model.norm.weight, expected)
    assert processor.image_processor.crop_size["height"] == 32
    run("compose", *parts, "--out", tmp_path / "shards", "--max_shard_size", "50KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    load(tmp_path / "shards")
