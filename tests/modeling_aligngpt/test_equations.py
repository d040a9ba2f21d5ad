"""The paper's three equations, against loops over plain numbers written from the paper."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError

from ..tolerance import assert_close  # noqa: TID252


def gelu(x):
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def slow_linear(layer, values):
    weight, bias = layer.weight.tolist(), layer.bias.tolist()
    return [sum(w * v for w, v in zip(row, values, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def slow_dot(first, second):
    return sum(a * b for a, b in zip(first, second, strict=True))


def slow_softmax(values):
    exponentials = [math.exp(value) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def slow_gate_weights(model, images, text):
    """Equation 2 for one sample: `images` is a list of images, each a list of T vectors; `text` a list of vectors."""
    config, gate = model.config, model.model.alignment_gate
    parts = [1 / len(text)] * len(text)
    if config.alignment_gate_query == "attention":
        parts = slow_softmax([slow_dot(gate.text_attention.weight[0].tolist(), vector) for vector in text])
    query = [slow_dot(parts, column) for column in zip(*text, strict=True)]
    scores = [[slow_dot(token, query) for token in image] for image in images]
    if config.alignment_gate_input == "cosine":
        scores = [
            [
                math.sqrt(len(query)) * score / math.sqrt(slow_dot(token, token) * slow_dot(query, query))
                for token, score in zip(image, row, strict=True)
            ]
            for image, row in zip(images, scores, strict=True)
        ]
    scores = [sum(column) / len(images) for column in zip(*scores, strict=True)]
    if config.alignment_gate_input == "text":
        scores = query
    if config.alignment_gate_input in ("layer_norm", "text"):
        mean = sum(scores) / len(scores)
        variance = sum((score - mean) ** 2 for score in scores) / len(scores)
        scores = [(score - mean) / math.sqrt(variance + 1e-5) for score in scores]
    first_layer = gate.text_linear if config.alignment_gate_input == "text" else gate.linear_1
    logits = slow_linear(gate.linear_2, [gelu(value) for value in slow_linear(first_layer, scores)])
    return slow_softmax([logit / config.alignment_gate_temperature for logit in logits])


def slow_mix(table, weights, with_global=True):
    """Equation 3: the last row of the table plus the weighted sum of the others."""
    return [
        (table[-1][d] if with_global else 0) + sum(weight * table[i][d] for i, weight in enumerate(weights))
        for d in range(len(table[0]))
    ]


def get_language_model_inputs(model, inputs):
    """The embeddings that reach the language model, and the outputs."""
    seen = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        outputs = model(**inputs)
    hook.remove()
    return seen["inputs_embeds"], outputs


@pytest.fixture
def inputs(processor, make_image):
    """A left-padded batch: one image, two images, none."""
    return processor(
        images=[[make_image(0)], [make_image(1), make_image(2)], []],
        text=["USER: <image>\nWhat is this? ASSISTANT:", "<image> and <image>: the same?", "Is the sky blue?"],
        padding=True,
        return_tensors="pt",
    )


def parts_of_rows(model, inputs):
    """For each row its images, as T vectors each, and the vectors of the text that the gate reads, as lists."""
    with torch.no_grad():
        features = [image.tolist() for image in model.get_image_features(inputs["pixel_values"]).pooler_output]
        embeddings = model.get_input_embeddings()(inputs["input_ids"])
    rows, tokens_per_image = [], len(features[0])
    for index, ids in enumerate(inputs["input_ids"].tolist()):
        count = ids.count(model.config.image_token_id) // tokens_per_image
        images, features = features[:count], features[count:]
        special = {model.config.image_token_id, model.config.align_token_id}
        real = [i for i, mask in enumerate(inputs["attention_mask"][index].tolist()) if mask]
        if ids[real[0]] == model.config.text_config.bos_token_id:
            real = real[1:]
        rows.append((images, [embeddings[index, i].tolist() for i in real if ids[i] not in special]))
    return rows


def test_equation_1_puts_the_embedding_of_the_level_at_the_align_token(model, inputs):
    embeddings, outputs = get_language_model_inputs(model, {**inputs, "alignment_levels": torch.tensor([5, 0, 3])})
    align_mask = inputs["input_ids"] == model.config.align_token_id
    table = model.model.alignment_embeddings.weight
    assert torch.equal(embeddings[align_mask], table[[5, 0]])
    assert not outputs.alignment_weights.any()


def test_equation_2_gives_the_softmax_of_the_gate_over_image_and_text(model, inputs):
    weights = model.get_alignment_weights(**inputs)
    for row, (images, text) in enumerate(parts_of_rows(model, inputs)):
        expected = slow_gate_weights(model, images, text) if images else [0.0] * 7
        assert_close(weights[row].tolist(), expected, largest=1.0)
    assert (weights[0] - weights[1]).abs().max() > 1e-3, "the gate gives all rows the same: the test shows nothing"


@pytest.mark.parametrize(
    "fields",
    [
        {"alignment_gate_query": "attention"},
        {"alignment_gate_input": "layer_norm"},
        {"alignment_gate_input": "cosine"},
        {"alignment_gate_input": "text"},
        {"alignment_gate_temperature": 0.2},
        {
            "alignment_gate_query": "attention",
            "alignment_gate_input": "cosine",
            "alignment_gate_temperature": 0.5,
        },
    ],
)
def test_another_gate_is_a_field_of_the_configuration_and_loaded_with_the_model(model, inputs, tmp_path, fields):
    model.save_pretrained(tmp_path)
    changed = type(model).from_pretrained(tmp_path, **fields).eval()
    for parameter in changed.model.alignment_gate.parameters():
        torch.nn.init.normal_(parameter)  # far from uniform weights, which any gate would give
    changed.save_pretrained(tmp_path / "changed")
    loaded = type(model).from_pretrained(tmp_path / "changed").eval()
    weights = loaded.get_alignment_weights(**inputs)
    for row, (images, text) in enumerate(parts_of_rows(loaded, inputs)):
        expected = slow_gate_weights(loaded, images, text) if images else [0.0] * 7
        assert_close(weights[row].tolist(), expected, largest=1.0)
    assert (weights[0] - model.get_alignment_weights(**inputs)[0]).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("query", ["mean", "attention"])
@pytest.mark.parametrize("gate_input", ["dot_product", "layer_norm", "cosine", "text"])
def test_an_image_alone_has_the_same_finite_weights_however_it_is_padded(
    model, processor, make_image, gate_input, query, dtype
):
    config = type(model.config)(
        **{**model.config.to_dict(), "alignment_gate_input": gate_input, "alignment_gate_query": query}
    )
    changed = type(model)(config).to(dtype).eval()
    single = processor(images=make_image(0), text="<image>", return_tensors="pt").to(dtype=dtype)
    padded = processor(
        images=[[make_image(0)], []], text=["<image>", "a long text " * 12], padding=True, return_tensors="pt"
    ).to(dtype=dtype)
    weights = changed.get_alignment_weights(**padded)
    assert weights.isfinite().all() and not weights[1].any()
    assert_close(weights[:1], changed.get_alignment_weights(**single), largest=1.0)


@pytest.mark.parametrize("temperature", [0, -1.0, math.inf])
def test_a_temperature_that_is_not_above_zero_is_refused_wherever_it_comes_from(model, tmp_path, temperature):
    with pytest.raises(StrictDataclassFieldValidationError, match="alignment_gate_temperature"):
        type(model.config)(alignment_gate_temperature=temperature)
    model.save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassFieldValidationError, match="alignment_gate_temperature"):
        type(model).from_pretrained(tmp_path, alignment_gate_temperature=temperature)


@pytest.mark.parametrize("mode", ["adaptive", "local", "average", "global"])
def test_equation_3_mixes_the_rows_of_the_table_as_the_mode_says(model, inputs, mode):
    model.config.alignment_mode = mode
    embeddings, outputs = get_language_model_inputs(model, inputs)
    table = model.model.alignment_embeddings.weight.tolist()
    align_mask = inputs["input_ids"] == model.config.align_token_id
    for row, (images, text) in enumerate(parts_of_rows(model, inputs)):
        if not images:
            assert not align_mask[row].any()
            continue
        weights = {"average": [1 / 7] * 7, "global": [0.0] * 7}.get(mode) or slow_gate_weights(model, images, text)
        expected = slow_mix(table, weights, with_global=mode != "local")
        assert_close(embeddings[row][align_mask[row]][0].tolist(), expected)
        assert_close(outputs.alignment_weights[row].tolist(), weights, largest=1.0)


def test_the_weights_of_a_training_batch_are_those_of_its_forward_pass(model, inputs):
    batch = {
        **inputs,
        "labels": inputs["input_ids"],
        "position_ids": (inputs["attention_mask"].cumsum(-1) - 1).clamp(0),
    }
    _, outputs = get_language_model_inputs(model, batch)
    assert_close(model.get_alignment_weights(**batch), outputs.alignment_weights, largest=1.0)


def test_a_level_of_minus_one_leaves_the_row_to_the_gate(model, inputs):
    _, gated = get_language_model_inputs(model, inputs)
    _, mixed = get_language_model_inputs(model, {**inputs, "alignment_levels": torch.tensor([2, -1, -1])})
    assert not mixed.alignment_weights[0].any()
    assert_close(mixed.logits[1], gated.logits[1])
    assert_close(mixed.alignment_weights[1], gated.alignment_weights[1], largest=1.0)


def test_gate_text_all_reads_the_answer_and_prompt_does_not(model, processor, make_image):
    def chat(answer):
        return processor.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": make_image(0)}, {"type": "text", "text": "?"}],
                },
                {"role": "assistant", "content": answer},
            ],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    answers = chat("Red."), chat("Two birds sit on a wire.")
    model.config.alignment_gate_text = "prompt"
    first, second = (model.get_alignment_weights(**inputs) for inputs in answers)
    assert_close(first, second)
    model.config.alignment_gate_text = "all"
    first, second = (model.get_alignment_weights(**inputs) for inputs in answers)
    assert (first - second).abs().max() > 1e-4
