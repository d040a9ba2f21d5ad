"""`aligngpt profile`: the gate's weights by group."""

import json
import statistics

import pytest
import torch

from aligngpt.processing.command_output import Mistakes
from aligngpt.serving.profile_command import main


@pytest.fixture
def questions(tmp_path, make_image):
    """Questions of two types, and two that the gate cannot run for."""
    for number in range(3):
        make_image(number).save(tmp_path / f"{number}.png")
    texts = {"colour": ["Is it red?", "Is it blue?"], "animal": ["Is it a cat?", "Is it a fox or a dog?", "A bird?"]}
    rows = [
        {"id": f"{kind}-{n}", "type": kind, "image": f"{n}.png", "question": text}
        for kind, group in texts.items()
        for n, text in enumerate(group)
    ]
    rows += [{"id": "text", "type": "colour", "question": "Which?"}]
    rows += [{"id": "lost", "type": "colour", "image": "9.png", "question": "Which?"}]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_means_and_spreads_are_those_of_single_questions(questions, checkpoint, parts, make_image, tmp_path, capsys):
    options = ["--data", str(tmp_path / "questions.jsonl"), "--image_folder", str(tmp_path), "--by", "type"]
    main([str(checkpoint), *options, "--batch_size", "3", "--output_dir", str(tmp_path / "profile")])
    found = json.loads((tmp_path / "profile" / "profile.json").read_text())
    assert found["faults"] == {"no_picture": 1, "missing": 1}
    assert {name: group["count"] for name, group in found["groups"].items()} == {"animal": 3, "colour": 2, "all": 5}
    expected = {}
    for row in questions[:5]:
        picture = {"type": "image", "image": make_image(int(row["image"][0]))}
        chat = [{"role": "user", "content": [picture, {"type": "text", "text": row["question"]}]}]
        inputs = parts[1].apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        with torch.inference_mode():
            expected.setdefault(row["type"], []).append(parts[0].get_alignment_weights(**inputs)[0].tolist())
    for kind, weights in expected.items():
        levels = list(zip(*weights, strict=True))
        assert found["groups"][kind]["mean"] == pytest.approx([*map(statistics.mean, levels)], abs=1e-5)
        assert found["groups"][kind]["std"] == pytest.approx([*map(statistics.stdev, levels)], abs=1e-5)
    rows = (tmp_path / "profile" / "weights.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in rows] == [row["id"] for row in questions[:5]]
    assert (tmp_path / "profile" / "profile.png").stat().st_size > 5000
    assert "Left out: no_picture: 1, missing: 1" in capsys.readouterr().out


def test_questions_and_an_output_that_is_new_are_needed(checkpoint, tmp_path):
    with pytest.raises(Mistakes, match="--data must be given"):
        main([str(checkpoint), "--output_dir", str(tmp_path / "new")])
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(Mistakes, match="not empty"):
        main([str(checkpoint), "--data", "q.jsonl", "--output_dir", str(tmp_path / "there")])


def test_questions_without_a_picture_have_no_profile(checkpoint, tmp_path):
    (tmp_path / "q.jsonl").write_text(json.dumps({"id": 1, "question": "Which?"}) + "\n")
    with pytest.raises(ValueError, match="The gate ran for no question"):
        main([str(checkpoint), "--data", str(tmp_path / "q.jsonl"), "--output_dir", str(tmp_path / "new")])
