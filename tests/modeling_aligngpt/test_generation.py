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
    """Greedy answers by one whole forward pass per token, where the gate reads the prompt only."""
    ids, mask, types = inputs["input_ids"], inputs["attention_mask"], inputs.get("token_type_ids")
    if types is None or model.config.alignment_gate_text == "all":  # written out: all text but BOS
        special = torch.tensor([model.config.image_token_id, model.config.align_token_id])
        types = mask * ~torch.isin(ids, special)
        types[torch.arange(len(ids)), mask.argmax(-1)] = 0
    mode, model.config.alignment_gate_text = model.config.alignment_gate_text, "prompt"
    for _ in range(num_tokens):
        with torch.no_grad():
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                pixel_values=inputs["pixel_values"],
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                token_type_ids=types,
            ).logits[:, -1]
        logits[:, model.generation_config.suppress_tokens] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        types = torch.cat([types, types.new_zeros(len(types), 1)], dim=1)
    model.config.alignment_gate_text = mode
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


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_gate_runs_once_per_generation(model, inputs, use_cache):
    calls = []
    hook = model.model.alignment_gate.register_forward_hook(lambda module, args, output: calls.append(output))
    model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=use_cache)
    hook.remove()
    assert len(calls) == 1


def test_generation_from_embeddings_gives_the_answers_from_ids(model, inputs):
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    inputs.pop("token_type_ids")
    expected = model.generate(**inputs, **options)[:, -6:]
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    assert model.generate(inputs_embeds=embeds, **inputs, **options).tolist() == expected.tolist()


def test_a_given_vector_takes_the_place_of_a_level(model, inputs):
    options = {"max_new_tokens": 6, "do_sample": False}
    expected = model.generate(**inputs, alignment_levels=torch.tensor([2, 5]), **options)
    vectors = model.model.alignment_embeddings.weight[[2, 5]]
    assert model.generate(**inputs, alignment_vectors=vectors, **options).tolist() == expected.tolist()


def test_a_second_turn_goes_on_from_the_cache_of_the_first(model, processor, make_image):
    from transformers import DynamicCache

    first = processor(images=make_image(0), text="USER: <image>\nWhat is this? ASSISTANT:", return_tensors="pt")
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    cache = DynamicCache(config=model.config.get_text_config())
    answer = model.generate(**first, past_key_values=cache, **options)
    more = processor(text="</s>USER: Where? ASSISTANT:", add_special_tokens=False, return_tensors="pt")["input_ids"]
    ids = torch.cat([answer, more], dim=1)
    types = torch.cat([first["token_type_ids"], torch.zeros(1, ids.shape[1] - first["input_ids"].shape[1])], dim=1)
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": types.long()}
    expected = model.generate(**whole, pixel_values=first["pixel_values"], **options)
    assert model.generate(**whole, past_key_values=cache, **options).tolist() == expected.tolist()


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


def test_an_align_token_after_the_prompt_is_a_token_like_any_other(model, inputs):
    """Without a cache a second placeholder must not be filled; with a cache it cannot be."""
    prompt = {name: tensor[:1] for name, tensor in inputs.items()}
    align = torch.tensor([[model.config.align_token_id]])
    whole = {"input_ids": torch.cat([prompt["input_ids"], align], dim=1), "pixel_values": prompt["pixel_values"]}
    whole["attention_mask"] = torch.cat([prompt["attention_mask"], torch.ones_like(align)], dim=1)
    whole["token_type_ids"] = torch.cat([prompt["token_type_ids"], torch.zeros_like(align)], dim=1)
    whole["position_ids"] = (whole["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        cache = model(**prompt, position_ids=whole["position_ids"][:, :-1], use_cache=True).past_key_values
        step = model(
            input_ids=align,
            attention_mask=whole["attention_mask"],
            position_ids=whole["position_ids"][:, -1:],
            past_key_values=cache,
        )
        torch.testing.assert_close(model(**whole).logits[:, -1], step.logits[:, -1], atol=1e-4, rtol=1e-4)
