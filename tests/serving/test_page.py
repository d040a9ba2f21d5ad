"""`aligngpt page`: in Chromium, and as a Space."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import gradio as gr
import pytest
import torch
import yaml

from aligngpt.serving.answering import Assistant
from aligngpt.serving.page import NOT_ANSWERED, Page, build_page
from aligngpt.serving.page_command import PageArguments, check_examples, find_examples, find_problems
from aligngpt.serving.space import write_space


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt install chromium)")


@pytest.fixture
def files(tmp_path, make_image):
    """Three pictures and a file that is none."""
    for number in range(3):
        make_image(number).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    return tmp_path


def last_of(page, text, paths=(), history=(), level="auto: the gate chooses"):
    """What the page ends with: the answer, and the bars."""
    message = {"text": text, "files": [str(path) for path in paths]}
    return list(page.answer(message, list(history), level, 8, 0))[-1]


def test_the_page_answers_as_the_assistant_with_the_conversation_so_far(steered, files, make_image):
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


@pytest.mark.parametrize(("paths", "text"), [(["bad.png"], "What?"), (["0.png"], "  "), ([], "a " * 600)])
def test_what_cannot_be_asked_is_told_and_is_no_part_of_the_conversation(paths, text, steered, files):
    page = Page(Assistant(*steered))
    told, bars = last_of(page, text, [files / path for path in paths])
    assert isinstance(told, gr.ChatMessage) and told.metadata == {"title": NOT_ANSWERED}
    assert "path" not in told.content and str(files) not in told.content
    parts = [{"type": "file", "file": {"path": str(files / path)}} for path in paths]
    history = [
        {"role": "user", "content": [*parts, {"type": "text", "text": text}], "metadata": None},
        {"role": "assistant", "content": told.content, "metadata": told.metadata},
    ]
    assert last_of(page, "And now?", [files / "1.png"], history) == last_of(page, "And now?", [files / "1.png"])


def test_the_bars_say_why_there_are_none(steered, files):
    page = Page(Assistant(*steered))
    assert "No picture" in last_of(page, "What?")[1]
    assert "Level 7 was asked for" in last_of(page, "What?", [files / "0.png"], level="7 (best)")[1]


def test_levels_of_the_page_are_those_of_the_model(steered, files):
    page = Page(Assistant(*steered))
    answers = {
        level: last_of(page, "What is this?", [files / "0.png"], level=level)[0] for level in ("0 (worst)", "3")
    }
    assert answers["0 (worst)"] != answers["3"]
    with pytest.raises(ValueError, match="0..7"):
        build_page(Assistant(*steered), "title", level="8")


def test_arguments_that_do_not_go_together_are_told(checkpoint):
    def problems(**options):
        return find_problems(PageArguments(**{"model": "you/model", **options}))

    assert problems() == []
    assert "--user and --password go together" in problems(user="me")[0]
    assert "--port 70000" in problems(port=70000)[0]
    assert "loads its model from the Hub" in problems(model=str(checkpoint), space="space")[0]


def test_pictures_to_click_on_are_looked_at_first(checkpoint, files):
    assert find_examples(PageArguments(model=str(checkpoint))) == []
    assert find_examples(PageArguments(model="m", example=[str(files / "0.png")]))[0][0] == str(files / "0.png")
    with pytest.raises(ValueError, match="bad.png"):
        check_examples([str(files / "0.png"), str(files / "bad.png")])


def test_a_space_is_a_folder_that_runs_the_page(steered, checkpoint, tmp_path, run_python):
    write_space(tmp_path / "space", str(checkpoint), "My page")
    text = (tmp_path / "space" / "README.md").read_text()
    front_matter = yaml.safe_load(text.split("---")[1])
    assert front_matter["sdk"] == "gradio" and front_matter["sdk_version"] == gr.__version__
    assert front_matter["title"] == "My page" and front_matter["app_file"] == "app.py"
    assert (tmp_path / "space" / "requirements.txt").read_text().startswith("aligngpt[page]==")
    printed = run_python("import app; print(type(app.page).__name__)", tmp_path / "space")
    assert printed.strip().endswith("Blocks")
    with pytest.raises(FileExistsError):
        write_space(tmp_path / "space", "you/model")


@pytest.fixture(scope="module")
def address(steered, tmp_path_factory):
    """Where the command shows its page."""
    folder = tmp_path_factory.mktemp("page")
    for part in steered:
        part.save_pretrained(folder / "model")
    log = folder / "log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    with open(log, "w") as file:
        command = ["-m", "aligngpt", "page", str(folder / "model"), "--port", "0", "--max_new_tokens", "8"]
        process = subprocess.Popen([sys.executable, *command], stdout=file, stderr=file, env=environment)
    while not (found := re.search(r"The page is at (http://\S+);", log.read_text())):
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    yield found[1]
    process.terminate()
    process.wait()


@pytest.fixture
def open_page(address):
    """A function that opens the page in a browser of its own, as another user would."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)

        def open_one():
            page = browser.new_context().new_page()
            page.set_default_timeout(60_000)
            sync_api.expect.set_options(timeout=60_000)
            for _ in range(100):  # the command says where before gradio listens
                try:
                    page.goto(address)
                    break
                except sync_api.Error:
                    time.sleep(0.2)
            page.get_by_test_id("textbox").wait_for()
            return page

        yield open_one
        browser.close()


def ask(page, text, *paths):
    """Asks, and waits for the whole answer."""
    from playwright.sync_api import expect

    answers = page.locator(".message.bot")
    before = answers.count()
    if paths:
        page.locator("input[type=file]").first.set_input_files([str(path) for path in paths])
        expect(page.locator(".thumbnail-item")).to_have_count(len(paths))
    box = page.get_by_test_id("textbox")
    box.fill(text)
    box.press("Enter")
    expect(answers).to_have_count(before + 1)
    expect(page.locator("button.stop-button")).to_have_count(0)
    expect(box).to_be_enabled()
    return answers.last.inner_text().strip()


def weights_of(page):
    return page.locator("#gate .weight").all_inner_texts()


@needs_chromium
@pytest.mark.slow
def test_a_browser_uploads_asks_and_sees_the_bars_change(open_page, files, steered):
    page, direct = open_page(), Page(Assistant(*steered))
    answer = ask(page, "What is this?", files / "0.png")
    assert answer == last_of(direct, "What is this?", [files / "0.png"])[0].strip()
    first = weights_of(page)
    assert len(first) == 7 and sum(map(float, first)) == pytest.approx(1, abs=0.01)
    widths = page.locator("#gate .bar").evaluate_all("bars => bars.map(bar => bar.getBoundingClientRect().width)")
    assert all(width > 0 for width in widths)
    ask(page, "Is the fox on the mat, or is it the dog, or are they birds?")
    assert weights_of(page) != first
    refused = ask(page, "And this?", files / "bad.png")
    assert "bad.png cannot be used as a picture" in refused
    assert ask(page, "What is this, then?", files / "1.png", files / "2.png")


@needs_chromium
@pytest.mark.slow
def test_a_level_that_is_chosen_takes_the_gate_s_place(open_page, files, steered):
    page = open_page()
    page.get_by_label("Alignment level").click()
    page.get_by_role("option", name="7 (best)").click()
    answer = ask(page, "What is this?", files / "0.png")
    assert (
        answer == last_of(Page(Assistant(*steered)), "What is this?", [files / "0.png"], level="7 (best)")[0].strip()
    )
    assert "Level 7 was asked for" in page.locator("#gate").inner_text()


@needs_chromium
@pytest.mark.slow
def test_two_users_at_once_have_a_conversation_each(open_page, files, steered):
    pages, direct = [open_page(), open_page()], Page(Assistant(*steered))
    for number, page in enumerate(pages):  # both are on their way before one is looked at
        page.locator("input[type=file]").first.set_input_files(str(files / f"{number}.png"))
        page.locator(".thumbnail-item").wait_for()
        page.get_by_test_id("textbox").fill("What is this?")
    for page in pages:
        page.get_by_test_id("textbox").press("Enter")
    for number, page in enumerate(pages):
        expected, bars = last_of(direct, "What is this?", [files / f"{number}.png"])
        page.get_by_text(expected.strip(), exact=True).first.wait_for()
        assert weights_of(page) == re.findall(r"\d\.\d{3}", bars)
        assert page.locator(".message.user img").count() == 1
    assert json.dumps(weights_of(pages[0])) != json.dumps(weights_of(pages[1]))
