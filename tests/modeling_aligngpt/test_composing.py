"""A model from a tower and a language model."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, CLIPConfig, CLIPModel

from aligngpt.composing import compose


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
    torch.testing.assert_close(torch.stack(tuple(features)), expected)


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
