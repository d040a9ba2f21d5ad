"""What each stage trains."""

import pytest
import torch

from aligngpt.training.stages import select_trainable


@pytest.fixture
def inputs(processor, make_image):
    inputs = processor(images=make_image(0), text="USER: <image>\nWhat is this? ASSISTANT: cat", return_tensors="pt")
    return {**inputs, "labels": inputs["input_ids"]}


# Written out from the paper's sections on both stages, not taken from the code
TRAINED = {
    "pretrain": ("model.multi_modal_projector.", "model.alignment_embeddings."),
    "sft": ("model.multi_modal_projector.", "model.language_model.", "lm_head.", "model.alignment_gate."),
}


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_gradients_reach_exactly_what_the_stage_trains(model, inputs, stage):
    names = select_trainable(model, stage)
    levels = {"alignment_levels": torch.tensor([3])} if stage == "pretrain" else {}
    model(**inputs, **levels).loss.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == set(names)
    assert with_gradient == {name for name, _ in model.named_parameters() if name.startswith(TRAINED[stage])}
    for name in names:
        assert model.get_parameter(name).grad.any(), f"{name} has a gradient of zeros"


def test_stage_1_moves_only_the_embedding_of_the_level(model, inputs):
    select_trainable(model, "pretrain")
    model(**inputs, alignment_levels=torch.tensor([3])).loss.backward()
    rows = model.model.alignment_embeddings.weight.grad.abs().sum(-1).nonzero().flatten()
    assert rows.tolist() == [3]


@pytest.mark.parametrize(
    ("mode", "trains"), [("adaptive", True), ("local", True), ("average", False), ("global", False)]
)
def test_the_gate_trains_where_the_mode_uses_it(model, mode, trains):
    model.config.alignment_mode = mode
    assert any("alignment_gate" in name for name in select_trainable(model, "sft")) == trains


def test_an_unknown_stage_is_an_error(model):
    with pytest.raises(ValueError, match="no stage 'dpo'"):
        select_trainable(model, "dpo")
