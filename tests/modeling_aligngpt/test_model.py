"""Batches, padding, gradients and bad input."""

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from aligngpt import AlignGPTForConditionalGeneration, AlignGPTProcessor

from ..tolerance import assert_close  # noqa: TID252


@pytest.fixture
def rows(make_image):
    """Texts and images of rows of every kind: one image, none, two images, an image in the middle."""
    return [
        ("USER: <image>\nWhat is this? ASSISTANT:", [make_image(0)]),
        ("Is the sky blue today, or is it red?", []),
        ("<image> and <image>: the same?", [make_image(1), make_image(2)]),
        ("The colour of the bus in <image> is", [make_image(3)]),
    ]


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_padded_batch_gives_each_row_the_logits_it_has_alone(model, processor, rows, padding_side):
    texts, images = zip(*rows, strict=True)
    batch = processor(
        images=list(images), text=list(texts), padding=True, padding_side=padding_side, return_tensors="pt"
    )
    with torch.no_grad():
        together = model(**batch)
        for index, (text, own_images) in enumerate(rows):
            alone = model(**processor(images=own_images or None, text=text, return_tensors="pt"))
            real = batch["attention_mask"][index].bool()
            assert_close(together.logits[index][real], alone.logits[0])
            assert_close(together.alignment_weights[index], alone.alignment_weights[0], largest=1.0)


def test_padding_does_not_reach_the_gate_without_token_types(model, processor, rows):
    texts, images = zip(*rows, strict=True)
    batch = processor(images=list(images), text=list(texts), padding=True, return_tensors="pt")
    expected = model.get_alignment_weights(**batch)
    batch.pop("token_type_ids")
    assert_close(model.get_alignment_weights(**batch), expected, largest=1.0)


def test_embeddings_in_place_of_ids_give_the_same_logits(model, processor, rows):
    texts, images = zip(*rows, strict=True)
    batch = processor(images=list(images), text=list(texts), padding=True, return_tensors="pt")
    batch.pop("token_type_ids")
    with torch.no_grad():
        expected = model(**batch).logits
        embeds = model.get_input_embeddings()(batch.pop("input_ids"))
        assert_close(model(inputs_embeds=embeds, **batch).logits, expected)


def test_earlier_tower_outputs_in_place_of_pixels_give_the_same_logits(model, processor, rows):
    inputs = processor(images=rows[2][1], text=rows[2][0], return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits
        outputs = model.get_image_features(inputs.pop("pixel_values"))
        assert_close(model(mm_encoder_outputs={"image": outputs}, **inputs).logits, expected)


@pytest.mark.parametrize("backbone", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"vision_feature_layer": -3},
        {"vision_feature_select_strategy": "default"},
        {"alignment_levels": torch.tensor([2, -1, -1, -1])},
        {"alignment_vectors": torch.ones(4, 32)},
        {"token_type_ids": None},
        {"attention_mask": None, "token_type_ids": None},
        {"position_ids": torch.zeros(1, 1, dtype=torch.long), "use_cache": False, "output_attentions": True},
    ],
    ids=lambda changes: "+".join(changes) or "as the processor gives it",
)
def test_alignment_weights_alone_are_those_of_the_forward_pass(model, processor, rows, changes, backbone):
    texts, images = zip(*rows, strict=True)
    batch = {**processor(images=list(images), text=list(texts), padding=True, return_tensors="pt"), **changes}
    model = model.model if backbone else model
    with torch.no_grad():
        expected = model(**batch).alignment_weights
        assert torch.equal(model.get_alignment_weights(**batch), expected)
        embeds = model.get_input_embeddings()(batch["input_ids"])
        batch = {**batch, "input_ids": None, "inputs_embeds": embeds}
        assert torch.equal(model.get_alignment_weights(**batch), expected)
        names = ("pixel_values", "vision_feature_layer", "vision_feature_select_strategy")
        outputs = model.get_image_features(**{name: batch[name] for name in names if name in batch})
        batch.pop("pixel_values")
        assert_close(
            model.get_alignment_weights(**batch, mm_encoder_outputs={"image": outputs}), expected, largest=1.0
        )


def test_another_layer_of_the_tower_gives_other_alignment_weights(model, processor, rows):
    inputs = processor(images=rows[0][1], text=rows[0][0], return_tensors="pt")
    usual = model.get_alignment_weights(**inputs)
    assert (model.get_alignment_weights(**inputs, vision_feature_layer=-3) - usual).abs().max() > 1e-4


def test_alignment_weights_of_a_batch_with_labels_are_those_without(model, processor, rows):
    inputs = processor(images=rows[0][1], text=rows[0][0], return_tensors="pt")
    expected = model.get_alignment_weights(**inputs)
    assert torch.equal(
        model.get_alignment_weights(**inputs, labels=inputs["input_ids"], num_items_in_batch=3), expected
    )


def test_a_misspelt_argument_of_the_alignment_weights_is_refused(model, processor, rows):
    inputs = processor(images=rows[0][1], text=rows[0][0], return_tensors="pt")
    with pytest.raises(TypeError, match="vision_feature_layers"):
        model.get_alignment_weights(**inputs, vision_feature_layers=-3)


@pytest.mark.parametrize("shape", [(0, 3, 16, 16), (0,)])
@pytest.mark.parametrize("training", [False, True])
def test_pixels_of_no_image_are_no_image(model, processor, rows, shape, training):
    inputs = processor(text=rows[1][0], return_tensors="pt")
    expected = model.train(training)(**inputs)
    outputs = model(**inputs, pixel_values=torch.zeros(shape))
    assert torch.equal(outputs.logits, expected.logits) and outputs.image_hidden_states is None
    options = {"max_new_tokens": 3, "num_beams": 2, "do_sample": False}
    expected = model.eval().generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, pixel_values=torch.zeros(shape), **options), expected)


def test_pixels_of_no_image_with_placeholders_are_an_error(model, processor, rows):
    inputs = processor(images=rows[0][1], text=rows[0][0], return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"][:0]
    with pytest.raises(ValueError, match="do not match"):
        model(**inputs)


def test_without_placeholders_the_model_is_its_language_model(model, processor, text_folder, rows):
    from transformers import AutoModelForCausalLM

    inputs = processor(text=rows[1][0], return_tensors="pt")
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(text_folder)(inputs["input_ids"]).logits
        logits = model(**inputs).logits
    assert_close(logits[..., : expected.shape[-1]], expected)


def test_a_llava_checkpoint_loads_with_only_the_new_parts_missing(tmp_path, model):
    fields = {name: value for name, value in model.config.to_dict().items() if name in LlavaConfig().to_dict()}
    llava = LlavaForConditionalGeneration(LlavaConfig(**{**fields, "model_type": "llava"}))
    llava.save_pretrained(tmp_path)
    loaded, info = AlignGPTForConditionalGeneration.from_pretrained(
        tmp_path, config=model.config, output_loading_info=True
    )
    new = {name for name in loaded.state_dict() if name.startswith(("model.alignment_",))}
    assert set(info["missing_keys"]) == new and not info["unexpected_keys"]
    for name, tensor in llava.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.model.alignment_embeddings.weight.std() > 0.1  # xavier-uniform on (8, 32)


def test_without_the_align_token_the_model_is_a_llava(model, processor, rows, tmp_path):
    fields = {name: value for name, value in model.config.to_dict().items() if name in LlavaConfig().to_dict()}
    llava = LlavaForConditionalGeneration(LlavaConfig(**{**fields, "model_type": "llava"})).eval()
    llava.load_state_dict({name: model.state_dict()[name] for name in llava.state_dict()})
    processor.add_align_token = False
    processor.save_pretrained(tmp_path)
    loaded = AlignGPTProcessor.from_pretrained(tmp_path)
    inputs = loaded(images=rows[0][1], text=rows[0][0], return_tensors="pt")
    assert model.config.align_token_id not in inputs["input_ids"]
    with torch.no_grad():
        expected = llava(**{name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}).logits
        assert_close(model(**inputs).logits, expected)


def test_every_alignment_and_gate_parameter_gets_a_gradient(model, processor, rows):
    inputs = processor(images=rows[0][1], text=rows[0][0], return_tensors="pt")
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    for name, parameter in model.model.named_parameters():
        if name.startswith(("alignment_", "multi_modal_projector")):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_an_all_text_batch_trains_with_the_vision_side_in_the_graph(model, processor, rows):
    inputs = processor(text=rows[1][0], return_tensors="pt")
    expected = model(**inputs).logits
    logits = model.train()(**inputs, labels=inputs["input_ids"]).logits
    assert_close(logits, expected)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    for name, parameter in model.model.named_parameters():
        if name.startswith(("alignment_", "multi_modal_projector")):
            assert parameter.grad is not None and not parameter.grad.any(), name


def test_a_frozen_tower_is_not_in_the_graph_whatever_checkpointing_asks_for(model, processor, rows):
    inputs = processor(images=rows[0][1], text=rows[0][0], return_tensors="pt")
    model.train()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    for is_frozen in (True, False):
        model.model.vision_tower.requires_grad_(not is_frozen)
        features = model.model.get_image_features(inputs["pixel_values"], return_dict=True)
        assert features.hidden_states[-2].requires_grad == (not is_frozen)
        assert features.pooler_output[0].requires_grad, "the projector's part"


@pytest.mark.parametrize("mode", ["adaptive", "local", "average", "global"])
@pytest.mark.parametrize("levels", [False, True])
def test_an_all_text_batch_runs_the_modules_of_one_with_images_in_the_same_order(model, processor, rows, mode, levels):
    """ZeRO-3 gathers parameters as modules run, ZeRO-2 adds up gradients as they come: in one order on all ranks."""
    model.config.alignment_mode = mode
    model.train().model.vision_tower.requires_grad_(False)
    order = []
    for name, module in model.named_modules():
        if name and not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: order.append(f"forward {name}"))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: order.append(f"backward {name}"))
    orders = []
    for text, images in (rows[0], rows[1]):
        inputs = processor(images=images or None, text=text, return_tensors="pt")
        assert ("pixel_values" in inputs) == bool(images)
        if levels:
            inputs["alignment_levels"] = torch.tensor([3 if images else -1])
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        orders.append(order.copy())
        order.clear()
    assert orders[0] == orders[1]


def test_gradient_checkpointing_does_not_change_the_gradients(model, processor, rows):
    texts, images = zip(*rows, strict=True)
    inputs = processor(images=list(images), text=list(texts), padding=True, return_tensors="pt")
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    model.train()
    model(**inputs, use_cache=False).loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(**inputs, use_cache=False).loss.backward()
    for name, gradient in expected.items():
        assert_close(model.get_parameter(name).grad, gradient, msg=name)


def test_weights_on_disk_give_the_same_logits(model, checkpoint, processor, rows, tmp_path):
    """A device_map that leaves table, gate and projector elsewhere than the token embeddings."""
    device_map = {"model.language_model": "cpu", "model.vision_tower": "cpu", "lm_head": "cpu"}
    device_map |= {
        f"model.{name}": "disk" for name in ("multi_modal_projector", "alignment_embeddings", "alignment_gate")
    }
    offloaded = AlignGPTForConditionalGeneration.from_pretrained(
        checkpoint, device_map=device_map, offload_folder=tmp_path
    )
    inputs = processor(images=rows[0][1], text=rows[0][0], return_tensors="pt")
    with torch.no_grad():
        assert_close(offloaded(**inputs).logits, model(**inputs).logits)
    options = {"max_new_tokens": 4, "do_sample": False}
    assert offloaded.generate(**inputs, **options).tolist() == model.generate(**inputs, **options).tolist()


def test_eager_and_sdpa_attention_agree(model, checkpoint, processor, rows):
    inputs = processor(images=rows[0][1], text=rows[0][0], return_tensors="pt")
    eager = AlignGPTForConditionalGeneration.from_pretrained(checkpoint, attn_implementation="eager")
    with torch.no_grad():
        assert_close(eager(**inputs).logits, model(**inputs).logits)


def test_half_precision_keeps_the_gates_softmax_in_full_precision(model, processor, rows):
    inputs = processor(images=rows[0][1], text=rows[0][0], return_tensors="pt")
    expected = model.get_alignment_weights(**inputs)
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    weights = model.bfloat16().get_alignment_weights(**inputs)
    assert weights.dtype == torch.bfloat16
    torch.testing.assert_close(weights.float(), expected, atol=0.05, rtol=0.2)
    assert abs(weights.float().sum() - 1) < 0.01


def test_the_special_rows_of_the_embedding_table_differ(model):
    table = model.get_input_embeddings().weight
    image, align = table[model.config.image_token_id], table[model.config.align_token_id]
    assert not torch.equal(image, align)
    assert len(table) % 64 == 0


class TestBadInput:
    @pytest.fixture
    def inputs(self, processor, rows):
        texts, images = zip(*rows[:2], strict=True)
        return processor(images=list(images), text=list(texts), padding=True, return_tensors="pt")

    @pytest.mark.parametrize("level", [8, -2])
    def test_a_level_out_of_range_is_an_error_that_names_the_range(self, model, inputs, level):
        with pytest.raises(ValueError, match=r"alignment_levels are \[0, .*must be 0\.\.7, or -1"):
            model(**inputs, alignment_levels=torch.tensor([0, level]))

    def test_levels_of_the_wrong_number_are_an_error(self, model, inputs):
        with pytest.raises(ValueError, match=r"shape \(3,\); expected one level for each of the 2 rows"):
            model(**inputs, alignment_levels=torch.tensor([0, 1, 2]))

    def test_more_images_than_placeholders_are_an_error(self, model, inputs):
        inputs["pixel_values"] = inputs["pixel_values"].repeat(2, 1, 1, 1)
        with pytest.raises(ValueError, match="do not match"):
            model(**inputs)

    def test_placeholders_spread_wrongly_over_rows_are_an_error(self, model, inputs):
        ids = inputs["input_ids"]
        position = (ids[0] == model.config.image_token_id).nonzero()[0]
        ids[1, -1] = model.config.image_token_id
        ids[0, position] = 5
        with pytest.raises(ValueError, match=r"an image has 16 tokens, the rows have \[15, 1\]"):
            model(**inputs)

    def test_a_processor_of_another_image_size_is_an_error(self, model, inputs):
        model.config.image_seq_length = 9
        with pytest.raises(ValueError, match="16 tokens per image.*image_seq_length=9"):
            model(**inputs)

    def test_types_longer_than_the_input_are_an_error(self, model, inputs):
        inputs["token_type_ids"] = torch.ones(2, inputs["input_ids"].shape[1] + 1, dtype=torch.long)
        with pytest.raises(ValueError, match="token_type_ids"):
            model(**inputs)

    def test_the_refused_call_leaves_the_model_as_it_was(self, model, inputs):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(ValueError):
            model.train()(**inputs, alignment_levels=torch.tensor([99, 0]), labels=inputs["input_ids"])
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]), name
