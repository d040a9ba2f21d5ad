"""The demo: its world, and all of its steps for a moment."""

import random
import subprocess
import sys
from pathlib import Path

import pytest


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
    from texts import ask

    scene = Scene((Thing("red", "circle", "top-left"), Thing("blue", "cross", "bottom-right")))
    rng = random.Random(0)
    assert ask(scene, "count", rng).answer == "two"
    first = scene.things[:1]
    assert ask(scene, "colour", rng, first)[1:] == ("what colour is top-left?", "red")
    assert ask(scene, "shape", rng, first)[1:] == ("what shape is top-left?", "circle")
    assert ask(scene, "place", rng, first).answer == "top-left"
    for _ in range(20):
        question = ask(scene, "presence", rng)
        there = any(f"{thing.colour} {thing.shape}" in question.question for thing in scene.things)
        assert question.answer == ("yes" if there else "no")


def test_answers_below_the_minimum_are_named():
    from report import check_results

    questions = {kind: {"accuracy": 0.95} for kind in ("colour", "count", "shape")}
    results = {"questions": questions, "precision": {"0": 0.1, "7": 0.5}}
    assert check_results(results) == []
    questions["shape"]["accuracy"], results["precision"]["7"] = 0.5, 0.2
    assert [failure.split(",")[0] for failure in check_results(results)] == [
        "Accuracy of shape questions is 0.50",
        "Facts at level 7 are 0.10 more often true than at level 0",
    ]


@pytest.mark.slow
def test_all_steps_of_the_demo_run_and_write_the_card(tmp_path):
    command = [sys.executable, str(DEMO / "demo.py"), "--smoke", "--output_dir", str(tmp_path)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Loading both in another process" in result.stdout
    card = (tmp_path / "stage2" / "README.md").read_text()
    assert "pipeline_tag: image-text-to-text" in card and "| colour | 16 |" in card
    assert (tmp_path / "levels" / "alignment_levels.json").is_file()
