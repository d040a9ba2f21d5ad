"""The demo: its world, and all of its steps for a moment."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


DEMO = Path(__file__).parents[2] / "examples" / "demo"


@pytest.fixture(autouse=True)
def demo_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(DEMO.parent))
    monkeypatch.syspath_prepend(str(DEMO))


def test_training_scenes_hold_no_held_out_combination_and_test_scenes_do():
    from scenes import COLOURS, HELD_OUT, PLACES, SHAPES, random_scene

    rng = random.Random(0)
    seen = {thing for _ in range(4000) for thing in random_scene(rng).things}
    assert not seen & HELD_OUT
    assert len(seen) + len(HELD_OUT) == len(COLOURS) * len(SHAPES) * len(PLACES)
    assert all(set(random_scene(rng, test=True).things) & HELD_OUT for _ in range(200))


def test_captions_state_the_facts_of_their_quality():
    from scenes import random_scene
    from texts import caption, facts, precision

    rng = random.Random(0)
    for _ in range(100):
        scene = random_scene(rng)
        pairs = {thing[:2] for thing in scene.things}
        assert facts(caption(scene, "vague", rng)) == set()
        assert len(facts(caption(scene, "one", rng))) == 1
        assert {fact[:2] for fact in facts(caption(scene, "all", rng))} == pairs
        assert {tuple(fact) for fact in facts(caption(scene, "places", rng))} == set(scene.things)
        assert precision(caption(scene, "places", rng), scene) == precision(caption(scene, "one", rng), scene) == 1
        assert precision(caption(scene, "wrong", rng), scene) == 0


def test_questions_have_the_answers_of_the_scene():
    from scenes import Scene, Thing
    from texts import QUESTION_TYPES, ask, type_of

    scene = Scene((Thing("red", "circle", "top-left"), Thing("blue", "cross", "bottom-right")))
    rng = random.Random(0)
    assert ask(scene, "count", rng).answer == "two"
    first = scene.things[:1]
    assert ask(scene, "colour", rng, first)[1:] == ("what colour is top-left?", "red")
    assert ask(scene, "shape", rng, first)[1:] == ("what shape is top-left?", "circle")
    assert ask(scene, "describe", rng).answer == "at the top-left a red circle and at the bottom-right a blue cross"
    for kind in QUESTION_TYPES:
        assert type_of(ask(scene, kind, rng).question) == kind


def test_a_conversation_has_no_question_twice_and_ends_when_there_are_no_more():
    from scenes import Scene, Thing
    from write_data import conversation

    scene = Scene((Thing("red", "circle", "top-left"),))
    questions = [message["content"] for message in conversation(scene, 5, random.Random(0))[::2]]
    assert len(questions) == len(set(questions)) == 4


def captions(*counts):
    """Captions with these numbers of true and stated facts."""
    return [{"text": f"{true} of {stated}", "true": true, "stated": stated} for true, stated in counts]


def test_answers_below_the_minimum_are_named():
    from report import check_results

    questions = {kind: {"accuracy": 0.95} for kind in ("colour", "count", "shape")}
    results = {"questions": questions, "captions": {"0": captions((1, 10)), "7": captions((2, 2), (3, 8))}}
    assert check_results(results) == []
    questions["shape"]["accuracy"], results["captions"]["7"] = 0.5, captions((1, 5))
    assert [failure.split(",")[0] for failure in check_results(results)] == [
        "Accuracy of shape questions is 0.50",
        "Facts at level 7 are 0.10 more often true than at level 0",
    ]


def test_what_is_said_of_levels_is_what_the_numbers_say():
    from report import say_levels

    said = say_levels({"captions": {"0": captions((1, 10)), "7": captions((9, 10))}})
    assert said.startswith("10% of what it says of a picture is true at level 0, the worst, and 90% at level 7, the")
    assert said.endswith("the level steers the captions.")
    assert say_levels({"captions": {"0": captions((5, 10)), "7": captions((0, 0))}}).endswith(
        "no effect of the level in this run."
    )


def test_chance_is_the_most_frequent_answer_of_a_type(tmp_path):
    from answer import answer_by_chance

    answers = {
        "what colour is top-left?": "red",
        "what colour is top-right?": "red",
        "how many shapes are there?": "two",
    }
    rows = [answers, {"what colour is top-left?": "blue", "describe the picture.": "a circle"}]
    lines = []
    for row in rows:
        turns = [
            message for question, answer in row.items() for message in ({"content": question}, {"content": answer})
        ]
        lines.append(json.dumps({"messages": [{"role": "system", "content": "x"}, *turns]}))
    (tmp_path / "conversations.jsonl").write_text("\n".join(lines))
    found = answer_by_chance(tmp_path / "conversations.jsonl")
    assert found == {"colour": "red", "count": "two", "describe": "a circle"}


def test_the_page_marks_right_and_wrong(tmp_path):
    from report import write_page, write_picture

    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "question": "what colour?", "answer": "red", "given": "red", "llava": "blue"},
        {"image": "a.png", "question": "what shape?", "answer": "circle", "given": "<cross>", "llava": "<cross>"},
    ]
    numbers = {"count": 2, "accuracy": 0.5, "llava": 0.25, "chance": 0.125}
    results = {"pictures": ["a.png"], "captions": {"0": captions((0, 1)), "7": captions((1, 1))}}
    results["questions"] = {"colour": numbers | {"rows": rows}}
    write_page(results, tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert (
        '<p class="wrong">\u2717 level 0: 0 of 1</p>' in page and '<p class="right">\u2713 level 7: 1 of 1</p>' in page
    )
    assert '<p class="right">\u2713 what colour? <b>red</b> <small>LLaVA: blue</small></p>' in page
    assert '<p class="wrong">\u2717 what shape? <b>&lt;cross&gt;</b> (right: circle)</p>' in page
    assert all(f">{number}</td>" in page for number in ("2", "0.12", "0.25", "0.50"))
    write_picture(results, tmp_path, tmp_path / "report.png")
    assert Image.open(tmp_path / "report.png").width > 1000


def test_the_root_s_card_is_of_the_template_of_today():
    template = (DEMO / "model_card_template.md").read_text()
    card = (DEMO.parents[1] / "model_card.md").read_text()
    for part in ("## Use", "## Limits"):  # where the template has no numbers
        text = template[template.index(part) :].split("\n## ")[0].split("{{")[0]
        assert text in card


@pytest.mark.slow
def test_all_steps_of_the_demo_run_and_write_report_and_card(tmp_path):
    command = [sys.executable, str(DEMO / "demo.py"), "--smoke", "--output_dir", str(tmp_path)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Loading them in another process" in result.stdout and "Ask it yourself:" in result.stdout
    card = (tmp_path / "stage2" / "README.md").read_text()
    assert "pipeline_tag: image-text-to-text" in card and "| colour | 16 |" in card
    assert (tmp_path / "levels" / "alignment_levels.json").is_file() and (tmp_path / "report.html").is_file()
    ask = [sys.executable, str(DEMO / "ask.py"), "--model", str(tmp_path / "stage2"), "what colour is top-left?"]
    for level, shows_gate in (("auto", True), ("best", False), ("0", False)):
        result = subprocess.run([*ask, "--level", level], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]
        assert ("level 6" in result.stdout) == shows_gate
    result = subprocess.run([*ask, "--level", "9"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2 and "it can be 0..7" in result.stderr.splitlines()[-1]
