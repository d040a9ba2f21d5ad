"""`aligngpt page` in Chromium."""

import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from aligngpt.serving.answering import Assistant
from aligngpt.serving.page import Page


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt install chromium)"),
]


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


def test_a_browser_uploads_asks_and_sees_the_bars_change(open_page, files, steered, last_of):
    page, direct = open_page(), Page(Assistant(*steered))
    answer = ask(page, "What is this?", files / "0.png")
    assert answer == last_of(direct, "What is this?", [files / "0.png"])[0].strip()
    first = weights_of(page)
    assert len(first) == 7 and sum(map(float, first)) == pytest.approx(1, abs=0.01)
    widths = page.locator("#gate .bar").evaluate_all("bars => bars.map(bar => bar.getBoundingClientRect().width)")
    assert all(width > 0 for width in widths)
    ask(page, "Is the fox on the mat, or is it the dog, or are they birds?")
    assert weights_of(page) != first
    for name in ("bad.png", "torn.png"):
        assert f"{name} cannot be used as a picture" in ask(page, "And this?", files / name)
    assert ask(page, "What is this, then?", files / "1.png", files / "2.png")


def test_only_pictures_can_be_chosen(open_page, tmp_path):
    page = open_page()
    (tmp_path / "note.txt").write_text("no picture")
    page.locator("input[type=file]").first.set_input_files(str(tmp_path / "note.txt"))
    page.get_by_text("Invalid file type: note.txt").wait_for()
    assert ask(page, "What is this?")


def test_an_answer_that_is_stopped_or_left_keeps_nobody_waiting(open_page, files, steered, last_of):
    from playwright.sync_api import expect

    def begin(page):
        """Begins an answer of a second or more, and waits for its first words."""
        page.get_by_text("How it answers").click()
        page.get_by_label("number input for Tokens at most").fill("450")
        page.get_by_test_id("textbox").fill("What is this?")
        page.get_by_test_id("textbox").press("Enter")
        page.locator("button.stop-button").wait_for()
        expect(page.locator(".message.bot").last).to_contain_text(re.compile(r"\w{3}"))

    pages = [open_page() for _ in range(3)]
    begin(pages[0])
    pages[0].locator("button.stop-button").click()
    expect(pages[0].locator("button.stop-button")).to_have_count(0)
    begin(pages[1])
    pages[1].close()
    expected = last_of(Page(Assistant(*steered)), "And you?", [files / "0.png"])[0].strip()
    assert ask(pages[2], "And you?", files / "0.png") == expected
    pages[0].get_by_label("number input for Tokens at most").fill("8")
    assert ask(pages[0], "And now?")


def test_a_level_that_is_chosen_takes_the_gate_s_place(open_page, files, steered, last_of):
    page = open_page()
    page.get_by_label("Alignment level").click()
    page.get_by_role("option", name="7 (best)").click()
    answer = ask(page, "What is this?", files / "0.png")
    assert (
        answer == last_of(Page(Assistant(*steered)), "What is this?", [files / "0.png"], level="7 (best)")[0].strip()
    )
    assert "Level 7 was asked for" in page.locator("#gate").inner_text()


def test_two_users_at_once_have_a_conversation_each(open_page, files, steered, last_of):
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
    assert weights_of(pages[0]) != weights_of(pages[1])
