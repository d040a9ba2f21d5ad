"""A model from a tower and a language model."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from aligngpt import AlignGPTForConditionalGeneration
from aligngpt.weights.composing import compose, settle_generation

from ...tolerance import assert_close  # noqa: TID252


def test_tower_and_language_model_keep_their_weights(composed, vision_folder, text_folder):
    state = composed[0].state_dict()
    for name, tensor in load_file(vision_folder / "model.safetensors").items():
        name = name.removeprefix("vision_model.")
        matches = [key for key in state if key.startswith("model.vision_tower.") and key.endswith(name)]
        assert len(matches) == 1 and torch.equal(state[matches[0]], tensor), name
    for name, tensor in load_file(text_folder / "model.safetensors").items():
        key = name if name.startswith("lm_head") else name.replace("model.", "model.language_model.", 1)
        assert torch.equal(state[key][: len(tensor)], tensor), name


def test_patch_features_are_the_towers(composed, vision_folder):
    model = composed[0]
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tower = AutoModel.from_pretrained(vision_folder)
        patches = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        expected = model.model.multi_modal_projector(patches)
        features = model.get_image_features(pixels).pooler_output
    assert_close(torch.stack(tuple(features)), expected)


def test_a_whole_clip_gives_its_tower(vision_folder, text_folder, tmp_path):
    from transformers import AutoImageProcessor

    config = CLIPConfig(
        vision_config=AutoModel.from_pretrained(vision_folder).config.to_dict(),
        text_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    )
    clip = CLIPModel(config)
    clip.save_pretrained(tmp_path)
    AutoImageProcessor.from_pretrained(vision_folder).save_pretrained(tmp_path)
    model, _ = compose(str(tmp_path), str(text_folder))
    tower = model.model.vision_tower.state_dict()
    assert tower
    for name, tensor in tower.items():
        assert any(torch.equal(tensor, other) for key, other in clip.state_dict().items() if key.endswith(name)), name


def test_half_precision_of_the_language_model_is_taken_for_all_parts(vision_folder, text_folder):
    model, _ = compose(str(vision_folder), str(text_folder), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_configuration_fields_reach_the_model(vision_folder, text_folder):
    model, _ = compose(str(vision_folder), str(text_folder), num_alignment_levels=4, alignment_mode="local")
    assert model.model.alignment_embeddings.weight.shape == (4, 32)
    assert model.model.alignment_gate.linear_2.out_features == 3
    assert model.config.alignment_mode == "local" and model.config.image_seq_length == 16


def test_a_part_without_some_of_its_weights_is_an_error(vision_folder, text_folder, tmp_path):
    for file in vision_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(vision_folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    save_file({key: tensor for key, tensor in weights.items() if key != name}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"has no weights for .*q_proj\.weight"):
        compose(str(tmp_path), str(text_folder))


def test_an_aligngpt_is_no_language_model(vision_folder, checkpoint):
    with pytest.raises(ValueError, match="is an AlignGPT, and no language model"):
        compose(str(vision_folder), str(checkpoint))


def test_settings_of_generation_that_vicuna_has_can_be_saved(vision_folder, text_folder, tmp_path):
    shutil.copytree(text_folder, tmp_path / "text")
    settings = {"bos_token_id": 1, "eos_token_id": 2, "max_length": 4096, "temperature": 0.9, "top_p": 0.6}
    (tmp_path / "text" / "generation_config.json").write_text(json.dumps(settings))
    model, _ = compose(str(vision_folder), str(tmp_path / "text"))
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert saved["max_length"] == 4096 and saved["eos_token_id"] == 2 and "temperature" not in saved


PEAK = """
import shutil, sys, threading, time
from pathlib import Path
from aligngpt.weights.compose_command import main


def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


before, peak, done = resident(), 0, threading.Event()


def watch():
    global peak
    while not done.wait(0.005):
        peak = max(peak, resident())


watcher = threading.Thread(target=watch)
watcher.start()
main(["--vision", "vision", "--text", "text", "--out", "out", "--max_shard_size", "100MB"])
done.set()
watcher.join()
print(peak - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads the memory from /proc")
def test_composing_takes_little_more_memory_than_the_parts(vision_folder, text_folder, run_python, tmp_path):
    shutil.copytree(text_folder, tmp_path / "text", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(vision_folder, tmp_path / "vision", ignore=shutil.ignore_patterns("*.safetensors"))
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    text = LlamaConfig(**sizes, vocab_size=32000, num_hidden_layers=24)
    vision = CLIPVisionConfig(**sizes, num_hidden_layers=12, image_size=112, patch_size=14)
    for folder, model in (("text", LlamaForCausalLM(text)), ("vision", CLIPVisionModel(vision))):
        model.half().save_pretrained(tmp_path / folder)
    parts = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    assert parts > 1e9
    peak = int(run_python(PEAK, tmp_path).split()[-1])
    assert peak < 1.15 * parts
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 10


def test_where_captions_end_is_kept_with_the_checkpoint(composed, checkpoint):
    loaded = AlignGPTForConditionalGeneration.from_pretrained(checkpoint)
    expected = composed[0].generation_config.caption_eos_token_id
    assert expected and loaded.generation_config.caption_eos_token_id == expected


def test_captions_end_at_every_token_that_ends_in_a_newline(composed):
    from transformers import PreTrainedTokenizerFast

    model, processor = composed
    assert model.generation_config.caption_eos_token_id == processor.tokenizer("a\n").input_ids[-1:]
    vocabulary = {
        token: index for index, token in enumerate(["<unk>", "a", ".", "\u010a", ".\u010a", "\u010a\u010a", "\u010ab"])
    }
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.ByteLevel()  # writes a newline as \u010a
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<unk>", pad_token="<unk>")
    model = copy.deepcopy(model)
    settle_generation(model, tokenizer, "vicuna_v1")
    assert model.generation_config.caption_eos_token_id == [3, 4, 5]
