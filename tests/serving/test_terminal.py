"""`aligngpt chat`, typed into a real terminal."""

import io
import json
import os
import sys

import pexpect
import pytest
from rich.console import Console

from aligngpt.processing.corpus.sources import open_corpus
from aligngpt.serving.answering import Assistant
from aligngpt.serving.arguments import ChatArguments
from aligngpt.serving.conversations import read_question
from aligngpt.serving.questions import _read_rows
from aligngpt.serving.terminal import Terminal


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def picture(tmp_path_factory, make_image):
    path = tmp_path_factory.mktemp("pictures") / "my photo.png"
    make_image(5).save(path)
    return path


@pytest.fixture
def terminal(checkpoint, tmp_path):
    """A function that starts the chat; it waits for the first prompt."""
    started = []

    def start(*arguments):
        environment = {
            "HF_HUB_OFFLINE": "1",
            "XDG_STATE_HOME": str(tmp_path / "state"),
            "TERM": "xterm",
            "HOME": str(tmp_path),
        }
        command = ["-m", "aligngpt", "chat", str(checkpoint), "--max_new_tokens", "8", *map(str, arguments)]
        process = pexpect.spawn(
            sys.executable,
            command,
            env={**os.environ, **environment},
            encoding="utf-8",
            timeout=60,
            dimensions=(40, 200),
            cwd=str(tmp_path),
        )
        process.delaybeforesend = None
        process.expect("Ctrl-D ends\\.")
        process.expect("> ")
        started.append(process)
        return process

    yield start
    for process in started:
        process.close(force=True)


def say(process, line):
    """Types a line; what is printed until the next prompt, without the line."""
    process.sendline(line)
    process.expect_exact(line)
    process.expect("\r\n(\x1b\\[\\?2004h)?> ")
    return process.before.replace("\x1b[?2004l", "").replace("\r", "").strip()


def test_questions_are_answered_with_pictures_levels_and_bars(terminal, picture, tmp_path):
    process = terminal()
    assert "there is no such file" in say(process, "/image nowhere.png")
    assert "my photo.png, 20 x 12" in say(process, f"/image '{picture}'")
    assert "Nothing was asked yet" in say(process, "/weights")
    answer = say(process, "What is this?")
    assert answer
    bars = say(process, "/weights")
    assert bars.count("  level ") == 7 and "█" in bars
    assert say(process, "/regenerate") == answer
    assert 'it can be 0..7, "worst"' in say(process, "/level 9")
    assert "Level: 3." in say(process, "/level 3")
    assert say(process, "/regenerate")
    assert "A level was asked for" in say(process, "/weights")
    assert "There is no /levle" in say(process, "/levle 3")
    say(process, "And this?")
    say(process, "/save talk.json")
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert [turn["role"] for turn in saved["messages"]] == ["user", "assistant"] * 2
    assert saved["messages"][0]["content"][0] == {"type": "image", "path": str(picture)}
    assert saved["level"] == 3
    ((_, record),) = _read_rows(open_corpus(str(tmp_path / "talk.json")))
    sample, reference = read_question(record)
    assert sample.images == [str(picture)] and reference == saved["messages"][-1]["content"][0]["text"]
    say(process, "/reset")
    assert "Nothing was asked yet" in say(process, "/regenerate")
    process.sendeof()
    process.expect(pexpect.EOF)
    process.close()
    assert process.exitstatus == 0


def test_arrow_keys_bring_back_the_questions_of_an_earlier_chat(terminal):
    pytest.importorskip("readline")
    process = terminal()
    say(process, "What is a fox?")
    process.sendline("/quit")
    process.expect(pexpect.EOF)
    process = terminal()
    process.send("\x1b[A\x1b[A")  # over /quit
    process.expect_exact("What is a fox?")


def test_ctrl_c_stops_an_answer_and_not_the_chat(terminal):
    process = terminal("--max_new_tokens", 480)
    process.sendline("What is this?")
    process.expect_exact("What is this?")
    process.expect("[A-Za-z]+")
    process.sendintr()
    process.expect_exact("(stopped)")
    process.expect("> ")
    assert say(process, "/level best") == "Level: best."


def test_ctrl_c_before_the_answer_begins_does_not_end_the_chat_either(parts, monkeypatch):
    shown, lines = io.StringIO(), iter(["What is this?", "/level best"])

    def type_next(prompt):
        for line in lines:
            return line
        raise EOFError

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", type_next)
    assistant = Assistant(*parts)
    monkeypatch.setattr(assistant, "prepare", interrupt)
    chat = Terminal(assistant, ChatArguments(model="m"), Console(file=shown, width=200))
    chat._remember_lines = lambda: None
    chat.run()
    assert shown.getvalue().splitlines()[1:3] == ["(stopped)", "Level: best."] and chat.messages == []


def test_a_picture_of_the_command_line_and_a_system_message_are_part_of_the_conversation(terminal, picture, tmp_path):
    process = terminal("--image", picture, "--system", "Be polite.")
    say(process, "What is this?")
    assert "level 6" in say(process, "/weights")
    say(process, "/save talk.json")
    messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert messages[0] == {"role": "system", "content": "Be polite."} and messages[1]["content"][0]["type"] == "image"
