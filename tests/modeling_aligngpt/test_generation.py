"""Generation: the gate reads the prompt once, whatever the cache and the search."""

import pytest
import torch


@pytest.fixture
def inputs(processor, make_image):
    """A left-padded batch of two prompts, one of them with two images."""
    return processor(
        images=[[make_image(0)], [make_image(1), make_image(2)]],
        text=["USER: <image>\nWhat is this? ASSISTANT:", "<image> and <image>: the same?"],
        padding=True,
        return_tensors="pt",
    )


def greedy_without_generate(model, inputs, num_tokens):
    """Greedy answers by one whole forward pass per token, with the weights of the prompt put in by hand."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    text_mask = model.model.get_alignment_text_mask(ids, mask, None, inputs.get("token_type_ids"))
    for _ in range(num_tokens):
        with torch.no_grad():
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                pixel_values=inputs["pixel_values"],
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                alignment_text_mask=text_mask,
            ).logits[:, -1]
        logits[:, model.generation_config.suppress_tokens] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return ids


@pytest.mark.parametrize("gate_text", ["prompt", "all"])
@pytest.mark.parametrize("with_types", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"use_cache": False}, {"cache_implementation": "static", "disable_compile": True}], ids=str
)
def test_every_kind_of_cache_gives_the_answers_of_whole_passes(model, inputs, options, gate_text, with_types):
    model.config.alignment_gate_text = gate_text
    if not with_types:
        inputs.pop("token_type_ids")
    expected = greedy_without_generate(model, inputs, 8)
    answers = model.generate(
        **inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False, eos_token_id=None, **options
    )
    assert answers.tolist() == expected.tolist()


def test_generated_tokens_do_not_reach_the_gate(model, inputs):
    seen = []
    hook = model.model.alignment_gate.register_forward_hook(lambda module, args, output: seen.append(output))
    model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=False)
    hook.remove()
    assert len(seen) == 4
    for weights in seen[1:]:
        torch.testing.assert_close(weights, seen[0])


def test_with_a_cache_the_gate_runs_once(model, inputs):
    calls = []
    hook = model.model.alignment_gate.register_forward_hook(lambda module, args, output: calls.append(output))
    model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    hook.remove()
    assert len(calls) == 1


def test_batched_answers_are_the_single_ones(model, processor, make_image):
    texts = ["USER: <image>\nWhat is this? ASSISTANT:", "Is the sky blue?", "<image> and <image>: the same?"]
    images = [[make_image(0)], [], [make_image(1), make_image(2)]]
    batch = processor(images=images, text=texts, padding=True, return_tensors="pt")
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    together = model.generate(**batch, **options)[:, -8:]
    for index, text in enumerate(texts):
        alone = model.generate(**processor(images=images[index] or None, text=text, return_tensors="pt"), **options)
        assert together[index].tolist() == alone[0, -8:].tolist()


def test_beam_search_keeps_the_images_of_a_row_together(model, inputs):
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    together = model.generate(**inputs, **options)
    assert model.generate(**inputs, **options, use_cache=False).tolist() == together.tolist()


def test_levels_steer_generation_with_and_without_a_cache(model, inputs):
    def answers(level, **options):
        levels = torch.full((2,), level)
        generated = model.generate(**inputs, alignment_levels=levels, max_new_tokens=8, do_sample=False, **options)
        return generated.tolist()

    assert answers(0) == answers(0, use_cache=False)
    assert len({str(answers(level)) for level in range(8)}) > 1


def test_placeholders_are_never_generated(model, inputs):
    with torch.no_grad():  # make them the likeliest tokens
        model.lm_head.weight[model.config.image_token_id] = 100 * model.lm_head.weight[7]
        model.lm_head.weight[model.config.align_token_id] = -100 * model.lm_head.weight[7]
    answers = model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert not set(answers.flatten().tolist()) & {model.config.image_token_id, model.config.align_token_id}


def test_assisted_generation_gives_the_greedy_answers(model, inputs):
    single = {name: tensor[:1] for name, tensor in inputs.items()}
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    expected = model.generate(**single, **options)
    assert model.generate(**single, prompt_lookup_num_tokens=2, **options).tolist() == expected.tolist()


def test_the_forward_pass_compiles_into_one_graph(model, inputs):
    with torch.no_grad():
        expected = model(**inputs).logits  # eager first: transformers installs its hooks on the first call
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(**inputs).logits, expected)


def test_the_forward_pass_exports(model, inputs):
    with torch.no_grad():
        program = torch.export.export(model, (), {**inputs, "use_cache": False})
        torch.testing.assert_close(
            program.module()(**inputs, use_cache=False).logits, model(**inputs).logits, atol=1e-4, rtol=1e-4
        )
