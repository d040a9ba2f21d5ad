"""The page's answers: as the model's own, in turns, refused, stopped."""

import re
import sys
import threading
from types import SimpleNamespace

import gradio as gr
import pytest
import torch

from aligngpt.serving.answering import Assistant
from aligngpt.serving.arguments import Sampling
from aligngpt.serving.page import AUTO, NOT_ANSWERED, Page, build_page, on_gpu


def test_the_page_answers_as_the_assistant_with_the_conversation_so_far(steered, files, make_image, last_of):
    assistant = Assistant(*steered)
    page = Page(assistant, system="Be polite.")
    history = [
        {"role": "user", "content": [{"type": "file", "file": {"path": str(files / "0.png")}}], "metadata": None},
        {"role": "user", "content": [{"type": "text", "text": "What is this?"}], "metadata": None},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}], "metadata": None},
    ]
    found, bars = last_of(page, "And this?", [files / "1.png"], history)
    chat = [
        {"role": "system", "content": "Be polite."},
        {
            "role": "user",
            "content": [{"type": "image", "image": make_image(0)}, {"type": "text", "text": "What is this?"}],
        },
        {"role": "assistant", "content": "A cat."},
        {
            "role": "user",
            "content": [{"type": "image", "image": make_image(1)}, {"type": "text", "text": "And this?"}],
        },
    ]
    inputs = steered[1].apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.inference_mode():
        output = steered[0].generate(**inputs, max_new_tokens=8, do_sample=False)
        weights = steered[0].get_alignment_weights(**inputs)[0].tolist()
    assert (
        found.strip() == steered[1].decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    )
    assert re.findall(r"\d\.\d{3}", bars) == [f"{weight:.3f}" for weight in weights]


@pytest.mark.parametrize(
    ("paths", "text"),
    [(["bad.png"], "What?"), (["1.png", "torn.png"], "What?"), (["0.png"], "  "), ([], "a " * 600)],
)
def test_what_cannot_be_asked_is_told_and_is_no_part_of_the_conversation(paths, text, steered, files, last_of):
    page = Page(Assistant(*steered))
    told, bars = last_of(page, text, [files / path for path in paths])
    assert isinstance(told, gr.ChatMessage) and told.metadata == {"title": NOT_ANSWERED}
    assert "path" not in told.content and str(files) not in told.content
    assert all(name in told.content for name in {"bad.png", "torn.png"}.intersection(paths))
    parts = [{"type": "file", "file": {"path": str(files / path)}} for path in paths]
    history = [
        {"role": "user", "content": [*parts, {"type": "text", "text": text}], "metadata": None},
        {"role": "assistant", "content": told.content, "metadata": told.metadata},
    ]
    assert last_of(page, "And now?", [files / "1.png"], history) == last_of(page, "And now?", [files / "1.png"])


def test_clients_of_its_interface_go_on_with_a_conversation_too(steered, files, last_of):
    page = Page(Assistant(*steered))
    in_the_browser = [
        {"role": "user", "content": [{"type": "file", "file": {"path": str(files / "0.png")}}], "metadata": None},
        {"role": "user", "content": [{"type": "text", "text": "What is this?"}], "metadata": None},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}], "metadata": None},
    ]
    elsewhere = [
        {"role": "user", "content": [{"path": str(files / "0.png")}, "What is this?"]},
        {"role": "assistant", "content": "A cat."},
    ]
    assert last_of(page, "And now?", (), elsewhere) == last_of(page, "And now?", (), in_the_browser)


def test_what_the_page_does_not_ask_for_is_the_command_s(steered, files, last_of):
    def ask(**sampling):
        page = Page(Assistant(*steered), sampling=Sampling(**sampling))
        return last_of(page, "What is this?", [files / "0.png"], temperature=2.0)[0]

    assert ask(seed=1) == ask(seed=1) != ask(seed=2)
    likeliest = last_of(Page(Assistant(*steered)), "What is this?", [files / "0.png"])[0]
    assert ask(seed=1, top_p=1e-6) == likeliest


def test_an_answer_that_nobody_waits_for_any_more_frees_the_model(steered, files, last_of):
    page = Page(Assistant(*steered))
    expected, before = last_of(page, "What?", [files / "1.png"]), threading.active_count()
    answer = page.answer({"text": "What is this?", "files": [str(files / "0.png")]}, [], AUTO, 400, 0)
    for _ in range(3):
        next(answer)
    answer.close()
    assert threading.active_count() == before
    assert last_of(page, "What?", [files / "1.png"]) == expected


def test_memory_that_does_not_suffice_is_told(steered, files, monkeypatch, last_of):
    def fail(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    page = Page(Assistant(*steered))
    monkeypatch.setattr(page.assistant, "weights", fail)
    assert "memory does not hold" in last_of(page, "What?", [files / "0.png"])[0].content


def test_only_a_space_of_zero_gpu_asks_for_a_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=lambda function: [function]))
    assert on_gpu(print) is print
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert on_gpu(print) == [print]


def test_the_bars_say_why_there_are_none(steered, files, last_of):
    page = Page(Assistant(*steered))
    assert "No picture" in last_of(page, "What?")[1]
    assert "Level 7 was asked for" in last_of(page, "What?", [files / "0.png"], level="7 (best)")[1]


def test_levels_of_the_page_are_those_of_the_model(steered, files, last_of):
    page = Page(Assistant(*steered))
    answers = {
        level: last_of(page, "What is this?", [files / "0.png"], level=level)[0] for level in ("0 (worst)", "3")
    }
    assert answers["0 (worst)"] != answers["3"]
    with pytest.raises(ValueError, match="0..7"):
        build_page(Assistant(*steered), "title", level="8")
