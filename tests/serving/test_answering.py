"""Inputs, answers and streams of the assistant, beside plain `generate`."""

from threading import Event

import pytest
import torch

from aligngpt.processing.chat_templates import load_chat_template
from aligngpt.processing.corpus.faults import Fault
from aligngpt.serving.answering import Assistant, PromptTooLongError
from aligngpt.serving.arguments import Sampling
from aligngpt.serving.conversations import read_conversation, read_question


@pytest.fixture
def assistant(parts):
    return Assistant(*parts)


def chat(text, *pictures):
    content = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def plainly_generated(parts, conversation, **options):
    """Token by token without a cache: the likeliest, until the end of the turn."""
    model, processor = parts
    inputs = processor.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = []
    for _ in range(options["max_new_tokens"]):
        with torch.no_grad():
            token = model(**inputs).logits[0, -1].argmax()
        if token == processor.tokenizer.eos_token_id:
            break
        ids.append(int(token))
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token[None, None]], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["token_type_ids"] = torch.nn.functional.pad(inputs["token_type_ids"], (0, 1))
    return processor.decode(ids, skip_special_tokens=True).strip()


def test_answers_of_a_batch_are_those_of_a_plain_loop(assistant, parts, make_image):
    chats = [
        chat("What is this?", make_image(1)),
        chat("Red or blue, of course?"),
        chat("a", *map(make_image, (2, 3))),
    ]
    answers = assistant.answer(assistant.prepare(chats), Sampling(max_new_tokens=6))
    assert [text for text, _ in answers] == [plainly_generated(parts, one, max_new_tokens=6) for one in chats]


def test_the_pieces_of_a_stream_are_the_answer(assistant, make_image):
    inputs = assistant.prepare([chat("What is this?", make_image(1))])
    pieces = list(assistant.stream(inputs, Sampling(max_new_tokens=8)))
    assert len(pieces) > 1
    assert "".join(pieces).strip() == assistant.answer(inputs, Sampling(max_new_tokens=8))[0][0]


def test_a_stream_that_is_stopped_ends_at_once(assistant, make_image):
    stop = Event()
    inputs = assistant.prepare([chat("What is this?", make_image(1))])
    stream = assistant.stream(inputs, Sampling(max_new_tokens=400), stop)
    next(stream)
    stop.set()
    assert len(list(stream)) < 200


def test_a_stream_raises_what_generation_raised(assistant, make_image):
    inputs = assistant.prepare([chat("What is this?", make_image(1))])
    inputs["pixel_values"] = inputs["pixel_values"].repeat(2, 1, 1, 1)
    with pytest.raises(ValueError, match="image"):
        list(assistant.stream(inputs, Sampling(max_new_tokens=4)))


def test_an_answer_ends_where_the_context_does(assistant):
    inputs = assistant.prepare([chat("What is this? " * 60)])
    room = assistant.context_length - inputs["input_ids"].shape[1]
    text, reason = assistant.answer(inputs, Sampling(max_new_tokens=10_000))[0]
    assert reason == "length" and 0 < room < 512
    with pytest.raises(PromptTooLongError, match="the model's context of 512 leaves no room"):
        assistant.prepare([chat("What is this? " * 300)])


def test_the_end_of_turn_of_the_template_ends_answers_also_where_the_checkpoint_does_not_name_it(parts, processor):
    processor.chat_template = (
        "{% for m in messages %}{{ m.content if m.content is string else m.content[0].text }}</s>{% endfor %}"
    )
    model = parts[0]
    found, model.generation_config.eos_token_id = model.generation_config.eos_token_id, None
    try:
        assert Assistant(model, processor).eos_token_ids == [processor.tokenizer.eos_token_id]
    finally:
        model.generation_config.eos_token_id = found


def test_generation_ends_at_an_end_of_turn_that_the_checkpoint_does_not_name(assistant, make_image):
    inputs = assistant.prepare([chat("What is this?", make_image(1))])
    length = inputs["input_ids"].shape[1]
    whole = assistant.generate(inputs, Sampling(max_new_tokens=8))[0, length:].tolist()
    assistant.eos_token_ids = [whole[4]]
    end = whole.index(whole[4]) + 1
    assert assistant.generate(inputs, Sampling(max_new_tokens=8))[0, length:].tolist() == whole[:end]
    text, reason = assistant.answer(inputs, Sampling(max_new_tokens=8))[0]
    assert reason == "stop" and text == assistant.decode(whole[: end - 1]).strip()


@pytest.mark.parametrize(
    ("name", "end"),
    [("chatml", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("gemma", "<end_of_turn>"), ("phi3", "<|end|>")],
)
def test_the_ends_of_turn_of_the_packaged_templates_are_found(name, end, parts, processor):
    processor.tokenizer.add_special_tokens({"additional_special_tokens": [end]})
    processor.chat_template = load_chat_template(name)
    found = Assistant(parts[0], processor).eos_token_ids
    assert found == [processor.tokenizer.eos_token_id, processor.tokenizer.convert_tokens_to_ids(end)]


def test_the_seed_makes_sampled_answers_the_same(assistant, make_image):
    inputs = assistant.prepare([chat("What is this?", make_image(1))])
    answers = {
        assistant.answer(inputs, Sampling(max_new_tokens=12, temperature=2.0, seed=seed))[0][0]
        for seed in (1, 1, 2, 3)
    }
    assert 1 < len(answers) < 4


@pytest.mark.parametrize(
    ("messages", "kind"),
    [
        ([], "malformed_record"),
        ("hello", "malformed_record"),
        ([{"role": "tool", "content": "x"}], "malformed_record"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "malformed_record"),
        ([{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]}], "unknown_part"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "missing"),
        ([{"role": "user", "content": 5}], "non_string_caption"),
        ([None], "malformed_record"),
    ],
)
def test_messages_that_ask_nothing_are_faults(messages, kind):
    with pytest.raises(Fault) as raised:
        read_conversation(messages)
    assert raised.value.kind == kind


def test_openai_s_messages_are_read_in_their_order():
    content = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:1", "detail": "low"}}]
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}]
    sample = read_conversation([*turns, {"role": "user", "content": content}])
    assert sample.images == ["data:1"]
    assert [part["type"] for part in sample.messages[-1]["content"]] == ["text", "image"]


@pytest.mark.parametrize(
    ("record", "question", "reference"),
    [
        ({"question_id": 3, "image": "a.jpg", "text": "what?"}, "what?", None),
        ({"id": "3", "image": "a.jpg", "question": "what?"}, "what?", None),
        (
            {"id": 3, "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nwhat?"}]},
            "what?",
            None,
        ),
        (
            {
                "id": 3,
                "image": "a.jpg",
                "messages": [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "that"}],
            },
            "what?",
            "that",
        ),
    ],
)
def test_questions_are_read_in_all_forms(record, question, reference):
    sample, found = read_question(record)
    assert (sample.id, sample.images, found) == ("3", ["a.jpg"], reference)
    assert sample.messages == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}], "weight": 1}
    ]


@pytest.mark.parametrize(
    "record",
    [{"image": "a.jpg", "caption": "a cat"}, {"image": "a.jpg", "text": "a cat"}, {"question": "", "text": "a"}],
)
def test_a_caption_is_no_question(record):
    with pytest.raises(Fault):
        read_question(record)
