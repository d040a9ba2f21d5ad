"""Generation: the gate reads the prompt once, whatever the cache and the search."""

import copy
from contextlib import nullcontext

import pytest
import torch
from transformers import DynamicCache, LogitsProcessor, StaticCache

from ..tolerance import assert_close  # noqa: TID252
from ..versions import before_transformers, since_transformers  # noqa: TID252


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
        logits[:, model.config.image_token_id :] = -torch.inf  # and `<align>` and padding, which come after it
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


@pytest.fixture
def turns(processor, make_image):
    """A function that gives the inputs of a chat's first turn, and the ids and pixels that a later one adds."""

    def make(first_has_image: bool):
        first = "USER: <image>\nWhat is this? ASSISTANT:" if first_has_image else "USER: Is the sky blue? ASSISTANT:"
        inputs = processor(images=make_image(0) if first_has_image else None, text=first, return_tensors="pt")
        second = "</s>USER: <image>\nAnd this? ASSISTANT:"
        more = processor(images=make_image(1), text=second, add_special_tokens=False, return_tensors="pt")
        return inputs, more["input_ids"][more["input_ids"] != processor.align_token_id][None], more["pixel_values"]

    return make


KINDS_OF_CACHE = [DynamicCache, lambda config: StaticCache(config, max_cache_len=128)]


@pytest.mark.parametrize("make_cache", KINDS_OF_CACHE, ids=["dynamic", "static"])
@pytest.mark.parametrize("passes", ["the whole chat", "the new ids"])
def test_an_image_that_comes_to_a_cache_of_text_is_refused(model, processor, make_image, turns, make_cache, passes):
    first, more, pixels = turns(first_has_image=False)
    cache = make_cache(config=model.config.get_text_config())
    options = {"max_new_tokens": 4, "do_sample": False, "past_key_values": cache, "disable_compile": True}
    answer = model.generate(**first, **options)
    if passes == "the whole chat":  # with a slot in it, of which the cache knows nothing
        text = processor.decode(answer[0], skip_special_tokens=True) + "</s>USER: <image>\nAnd this? ASSISTANT:"
        second = processor(images=make_image(1), text=text, return_tensors="pt")
    else:
        mask = torch.ones(1, answer.shape[1] + more.shape[1], dtype=torch.long)
        second = {"input_ids": more, "attention_mask": mask, "pixel_values": pixels}
    with pytest.raises(ValueError, match="began without one.*pass the whole chat anew, without past_key_values"):
        model.generate(**second, **options)


def test_an_image_that_comes_to_a_cache_of_text_is_refused_in_a_single_pass(model, turns):
    first, more, pixels = turns(first_has_image=False)
    cache = model(**first, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="began without one"):
        model(input_ids=more, pixel_values=pixels, past_key_values=cache)


def test_a_row_of_text_in_the_cache_gets_no_image_while_its_neighbour_may(model, processor, make_image):
    batch = processor(
        images=[[make_image(0)], []], text=["USER: <image> ASSISTANT:", "Blue?"], padding=True, return_tensors="pt"
    )
    more = torch.full((2, 16), 5)
    for row, refused in ((0, False), (1, True)):
        cache = model(**batch, use_cache=True).past_key_values
        ids = more.clone()
        ids[row] = model.config.image_token_id
        with pytest.raises(ValueError, match="began without one") if refused else nullcontext():
            model(input_ids=ids, pixel_values=batch["pixel_values"], past_key_values=cache)


def test_a_static_cache_that_was_reset_begins_anew(model, turns):
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=128)
    options = {"max_new_tokens": 2, "do_sample": False, "past_key_values": cache, "disable_compile": True}
    first, more, pixels = turns(first_has_image=True)
    expected = model.generate(**first, **options)
    cache.reset()
    assert torch.equal(model.generate(**first, **options), expected)
    cache.reset()
    answer = model.generate(**turns(first_has_image=False)[0], **options)
    mask = torch.ones(1, answer.shape[1] + more.shape[1], dtype=torch.long)
    with pytest.raises(ValueError, match="began without one"):
        model.generate(input_ids=more, attention_mask=mask, pixel_values=pixels, **options)


def test_another_image_in_a_cached_chat_is_seen_with_the_first_turn_s_vector(model, turns):
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    first, more, pixels = turns(first_has_image=True)
    with torch.no_grad():
        weights = model(**first).alignment_weights[0]
    table = model.model.alignment_embeddings.weight.detach()
    vector = table[-1] + weights @ table[:-1]
    answer = model.generate(**first, **options)
    ids = torch.cat([answer.sequences, more], dim=1)
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    both = torch.cat([first["pixel_values"], pixels])
    expected = model.generate(**whole, pixel_values=both, alignment_vectors=vector[None], **options)
    cached = model.generate(**whole, pixel_values=pixels, past_key_values=answer.past_key_values, **options)
    assert cached.sequences.tolist() == expected.sequences.tolist()
    for logits, expected_logits in zip(cached.logits, expected.logits, strict=True):
        assert_close(logits, expected_logits)


@since_transformers("5.23", "prefill in chunks sees images")
@pytest.mark.parametrize("chunk_size", [1, 2, 7])
def test_a_prompt_that_is_passed_in_chunks_gives_the_answers_of_one_pass(model, turns, chunk_size):
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    first = turns(first_has_image=True)[0]
    expected = model.generate(**first, **options)
    assert torch.equal(model.generate(**first, prefill_chunk_size=chunk_size, **options), expected)


@before_transformers("5.23", "prefill in chunks sees images")
def test_a_prompt_in_chunks_is_refused_where_chunks_see_all_images(model, inputs):
    with pytest.raises(NotImplementedError, match="prefill_chunk_size needs transformers 5.23"):
        model.generate(**inputs, prefill_chunk_size=2)
    generation_config = copy.deepcopy(model.generation_config)
    generation_config.prefill_chunk_size = 2
    with pytest.raises(NotImplementedError, match="prefill_chunk_size needs transformers 5.23"):
        model.generate(**inputs, generation_config=generation_config)


class WriteNewline(LogitsProcessor):
    """Every fourth token is a newline."""

    def __init__(self, prompt_length, newline):
        self.prompt_length, self.newline = prompt_length, newline

    def __call__(self, input_ids, scores):
        is_fourth = (input_ids.shape[1] - self.prompt_length) % 4 == 3
        return scores.index_fill(1, torch.tensor([self.newline]), torch.inf if is_fourth else -torch.inf)


@pytest.mark.parametrize(
    ("template", "options", "length"),
    [
        ("plain", {}, 4),
        ("plain", {"eos_token_id": 2}, 10),
        (None, {}, 10),
    ],
)
def test_a_caption_ends_at_its_newline_and_an_answer_does_not(model, processor, make_image, template, options, length):
    newline = processor.tokenizer("a\n", add_special_tokens=False).input_ids[-1]
    chats = [[{"role": "user", "content": [{"type": "image", "image": make_image(i)}]}] for i in range(2)]
    inputs = processor.apply_chat_template(
        chats, chat_template=template, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    start = inputs["input_ids"].shape[1]
    writers = [WriteNewline(start, newline)]
    tokens = model.generate(**inputs, max_new_tokens=10, min_new_tokens=2, logits_processor=writers, **options)
    assert tokens.shape[1] - start == length


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


def train_head(model, inputs, answer):
    """Trains the head on an answer of these tokens; AdamW moves all of its rows."""
    single = {name: tensor[:1] for name, tensor in inputs.items()}
    ids = torch.cat([single.pop("input_ids"), torch.tensor([answer])], dim=1)
    labels = ids.clone()
    labels[:, : -len(answer)] = -100
    single.pop("attention_mask")
    before, optimizer = model.lm_head.weight.detach().clone(), torch.optim.AdamW(model.lm_head.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        model(**single, input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    assert not (model.lm_head.weight == before).all(-1).any()


def test_rows_of_padding_are_never_generated(model, processor, inputs):
    options = {"do_sample": True, "num_return_sequences": 100, "max_new_tokens": 10, "temperature": 10.0, "top_k": 0}
    length = inputs["input_ids"].shape[1]
    for _ in range(2):
        answers = model.generate(**inputs, **options)[:, length:]
        assert answers.max() < len(processor.tokenizer) < model.config.get_text_config().vocab_size
        train_head(model, inputs, [5, 6, 7])  # moves them all, and none away from the others


def test_the_logits_of_padding_are_never_the_largest(model, processor, inputs):
    with torch.no_grad():
        logits = model(**inputs).logits
    padding = logits[..., len(processor.tokenizer) :]
    assert padding.shape[-1] == 26 and (padding < logits.amax(-1, keepdim=True)).all()
    torch.testing.assert_close(padding[..., 0], logits[..., :420].mean(-1), atol=1e-2, rtol=1e-2)


def test_a_token_that_is_added_after_composing_can_be_trained_and_generated(model, processor, inputs, tmp_path):
    processor.tokenizer.add_tokens(["<x>", "<y>"])
    added, unused = processor.tokenizer.convert_tokens_to_ids(["<x>", "<y>"])
    assert added < model.config.get_text_config().vocab_size, "a row of padding"
    prompt = {name: tensor[:1] for name, tensor in inputs.items()}
    options = {"max_new_tokens": 2, "do_sample": False}
    assert added not in model.generate(**prompt, **options)
    train_head(model, inputs, [added, 7])
    assert model.generate(**prompt, **options)[0, -2:].tolist() == [added, 7]
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.generate(**prompt, **options)[0, -2:].tolist() == [added, 7]
    placeholders = {model.config.image_token_id, model.config.align_token_id}
    assert {unused, *placeholders} <= set(loaded.get_suppressed_tokens())


def test_a_token_of_a_table_that_was_made_larger_can_be_generated(model, processor, inputs):
    processor.tokenizer.add_tokens([f"<x{index}>" for index in range(30)])
    model.resize_token_embeddings(len(processor.tokenizer))
    train_head(model, inputs, [len(processor.tokenizer) - 1, 7])
    prompt = {name: tensor[:1] for name, tensor in inputs.items()}
    answer = model.generate(**prompt, max_new_tokens=2, do_sample=False)
    assert answer[0, -2:].tolist() == [len(processor.tokenizer) - 1, 7]


def test_own_suppressed_tokens_come_on_top(model, inputs):
    usual = model.generate(**inputs, max_new_tokens=1, do_sample=False)[:, -1].tolist()
    with torch.no_grad():  # the likeliest tokens
        model.lm_head.weight[model.config.align_token_id] = 100 * model.lm_head.weight[7]
        model.lm_head.weight[model.config.image_token_id] = -100 * model.lm_head.weight[7]
    model.generation_config.suppress_tokens = [usual[0]]
    for options in ({}, {"suppress_tokens": usual}):
        answers = model.generate(**inputs, max_new_tokens=4, do_sample=False, **options)
        new = set(answers[:, inputs["input_ids"].shape[1] :].flatten().tolist())
        assert not new & {usual[0], model.config.image_token_id, model.config.align_token_id}
    assert model.generation_config.suppress_tokens == [usual[0]]


def test_assisted_generation_gives_the_greedy_answers(model, inputs):
    single = {name: tensor[:1] for name, tensor in inputs.items()}
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    expected = model.generate(**single, **options)
    assert model.generate(**single, prompt_lookup_num_tokens=2, **options).tolist() == expected.tolist()
    assert model.generate(**single, assistant_model=copy.deepcopy(model), **options).tolist() == expected.tolist()


def test_the_forward_pass_compiles_into_one_graph(model, inputs):
    with torch.no_grad():
        expected = model(**inputs).logits  # eager first: transformers installs its hooks on the first call
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert_close(compiled(**inputs).logits, expected)


def test_the_first_pass_with_a_static_cache_compiles_into_one_graph(model, inputs):
    def run(forward):
        return forward(**inputs, past_key_values=StaticCache(model.config.get_text_config(), max_cache_len=128)).logits

    with torch.no_grad():
        expected = run(model)
        assert_close(run(torch.compile(model, fullgraph=True, backend="eager")), expected)


def test_the_forward_pass_exports(model, inputs):
    with torch.no_grad():
        program = torch.export.export(model, (), {**inputs, "use_cache": False})
        assert_close(program.module()(**inputs, use_cache=False).logits, model(**inputs).logits)


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
        assert_close(model(**whole).logits[:, -1], step.logits[:, -1])
