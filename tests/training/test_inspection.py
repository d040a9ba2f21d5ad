"""`aligngpt inspect`."""

import sys

import pytest

from aligngpt.__main__ import main


@pytest.fixture
def inspect(checkpoint, data, monkeypatch, capsys):
    """A function that runs the command with more arguments and returns what it printed."""

    def run(*arguments):
        command = ["aligngpt", "inspect", "--model", checkpoint, "--image_folder", data, *arguments]
        monkeypatch.setattr(sys, "argv", [str(part) for part in command])
        main()
        return capsys.readouterr().out

    return run


def test_a_row_of_stage_2_is_shown_with_its_image_and_its_trained_tokens(inspect, data, checkpoint, processor):
    printed = inspect("--data", data / "chats.jsonl", "--id", "1")
    # SentencePiece writes a space before every piece of text, so also after a placeholder
    assert "<s><align> A chat between a curious user and an artificial intelligence assistant. The " in printed
    assert "answers to the user's questions. USER: <image>x16 \nWhat is it? ASSISTANT:[[ cat 1.</s>]]" in printed
    trained = len(processor.tokenizer("cat 1.</s>", add_special_tokens=False).input_ids)
    assert f"16 of images, {trained} trained" in printed and "level not given" in printed


def test_a_row_of_stage_1_is_shown_with_its_level(inspect, data):
    printed = inspect("--data", data / "pairs.jsonl", "--stage", "pretrain", "--row", "3", "--num_rows", "2")
    assert "row 3:" in printed and "level 3" in printed and "row 4:" in printed
    assert "<s><align><image>x16[[ cat 3\n]]" in printed


def test_colours_go_to_a_page(inspect, data, tmp_path):
    inspect("--data", data / "chats.jsonl", "--output_file", tmp_path / "row.html")
    assert "color" in (tmp_path / "row.html").read_text()


def test_a_row_that_is_not_there_is_said_so(inspect, data, capsys):
    with pytest.raises(SystemExit):
        inspect("--data", data / "chats.jsonl", "--id", "999")
    assert "has no row 999" in capsys.readouterr().err
