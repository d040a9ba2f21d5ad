"""`aligngpt chat --input`: a row out for each row in, whatever happens on the way."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from aligngpt.processing.command_output import Mistakes
from aligngpt.serving.answering import Assistant
from aligngpt.serving.arguments import ChatArguments, find_problems
from aligngpt.serving.questions import answer_file, open_run


@pytest.fixture
def questions(tmp_path, make_image):
    """A file of questions with some of each fault, and the arguments that answer it."""
    for number in range(3):
        make_image(number).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    rows = [{"question_id": n, "image": f"{n % 3}.png", "text": f"What is this, {n}?"} for n in range(7)]
    rows[2]["image"] = "broken.png"
    rows[4]["image"] = "nowhere.png"
    rows[5]["text"] = "a word " * 400
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "questions.jsonl").write_text("\n".join([*lines[:3], "{half", *lines[3:]]) + "\n")
    return ChatArguments(
        model="m",
        input=str(tmp_path / "questions.jsonl"),
        output_file=str(tmp_path / "answers.jsonl"),
        image_folder=str(tmp_path),
        max_new_tokens=5,
        batch_size=3,
    )


def answers_of(arguments):
    with open(arguments.output_file, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_every_question_has_its_row_in_order_with_what_was_wrong(questions, parts):
    answer_file(open_run(questions), Assistant(*parts))
    rows = answers_of(questions)
    assert [row["index"] for row in rows] == [*range(8)]
    assert [row["id"] for row in rows] == ["0", "1", "2", None, "3", "4", "5", "6"]
    kinds = {row["index"]: row["fault"] for row in rows if "fault" in row}
    assert kinds == {2: "truncated", 3: "malformed_record", 5: "missing", 6: "too_long"}
    assert all(len(row["alignment_weights"]) == 7 for row in rows if "answer" in row)


def test_answers_are_the_same_one_by_one(questions, parts, tmp_path):
    answer_file(open_run(questions), Assistant(*parts))
    batched = answers_of(questions)
    questions.output_file, questions.batch_size = str(tmp_path / "single.jsonl"), 1
    answer_file(open_run(questions), Assistant(*parts))
    for one, other in zip(batched, answers_of(questions), strict=True):
        weights = [torch.tensor(row.pop("alignment_weights", [])) for row in (one, other)]
        assert one == other
        torch.testing.assert_close(*weights, atol=2e-4, rtol=0)  # rounded to four places


@pytest.mark.parametrize("bytes_lost", [0, 1, 30])
def test_a_run_that_was_cut_off_goes_on_where_it_was(bytes_lost, questions, parts, monkeypatch):
    assistant, asked = Assistant(*parts), []
    answer_file(open_run(questions), assistant)
    whole = answers_of(questions)
    os.unlink(questions.output_file)
    run = open_run(questions)
    lines = [json.dumps(run.settings), *map(json.dumps, whole[:4])]
    text = "".join(line + "\n" for line in lines).encode()
    run.unfinished.write_bytes(text[: len(text) - bytes_lost])
    run = open_run(questions)
    assert run.num_done == (3 if bytes_lost else 4)
    prepare = assistant.prepare
    monkeypatch.setattr(assistant, "prepare", lambda chats, *args: asked.extend(chats) or prepare(chats, *args))
    answer_file(run, assistant)
    assert answers_of(questions) == whole
    assert len(asked) < 7


def test_an_unfinished_output_of_other_settings_is_not_gone_on_with(questions, parts):
    run = open_run(questions)
    run.unfinished.write_text(json.dumps(run.settings) + "\n")
    questions.level = "best"
    with pytest.raises(Mistakes, match="other settings \\(level: 'auto', now 'best'\\)"):
        open_run(questions)


def test_an_output_that_is_there_is_not_overwritten(questions, tmp_path):
    (tmp_path / "answers.jsonl").write_text("mine")
    with pytest.raises(Mistakes, match="it is there already"):
        open_run(questions)


def test_levels_of_the_records_are_asked_for_when_told(questions, parts, tmp_path, caplog):
    rows = [
        {"id": n, "image": "0.png", "question": "a?", "alignment_level": level} for n, level in enumerate([0, 7, 8])
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    caplog.set_level("INFO", logger="aligngpt")
    answer_file(open_run(questions), Assistant(*parts))
    assert {row["level"] for row in answers_of(questions)} == {"auto"}
    assert "3 records have an alignment level, which --level data would ask for" in caplog.text
    questions.output_file, questions.level = str(tmp_path / "levels.jsonl"), "data"
    answer_file(open_run(questions), Assistant(*parts))
    rows = answers_of(questions)
    assert [row.get("level") for row in rows] == [0, 7, None] and "alignment_weights" not in rows[0]
    assert rows[2]["fault"] == "level_out_of_range" and "0..7" in rows[2]["message"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"output_file": "x"}, "--output_file is for --input"),
        ({"input": "x"}, "--output_file must be given"),
        ({"input": "x", "output_file": "y", "batch_size": 0}, "--batch_size 0"),
        ({"temperature": 3.0}, "--temperature 3.0"),
        ({"top_p": 0.0}, "--top_p 0.0"),
        ({"max_new_tokens": 0}, "--max_new_tokens 0"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "--load_in_4bit and --load_in_8bit"),
        ({"dtype": "int3"}, "--dtype int3"),
    ],
)
def test_arguments_that_do_not_go_together_are_told(options, told):
    (problem,) = find_problems(ChatArguments(model="m", **options))
    assert told in problem


@pytest.mark.slow
def test_a_killed_command_loses_and_repeats_nothing(checkpoint, make_image, tmp_path):
    make_image(1).save(tmp_path / "0.png")
    rows = [{"question_id": n, "image": "0.png", "text": f"What is {n}?"} for n in range(120)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        sys.executable,
        "-m",
        "aligngpt",
        "chat",
        checkpoint,
        "--input",
        "questions.jsonl",
        "--image_folder",
        ".",
    ]
    command += ["--output_file", "answers.jsonl", "--batch_size", "2", "--max_new_tokens", "30"]
    unfinished, finished = tmp_path / "answers.jsonl.unfinished", tmp_path / "answers.jsonl"
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    while not (unfinished.exists() and unfinished.read_text().count("\n") > 20) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not finished.exists()
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0 and "questions were answered before" in result.stderr
    assert [json.loads(line)["index"] for line in finished.read_text().splitlines()] == [*range(120)]
