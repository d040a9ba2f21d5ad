"""The miniature experiment: its world, what it measures, its matrix and report; and a reduced version of all of it."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch


MINIATURE = Path(__file__).parents[2] / "examples" / "miniature"


@pytest.fixture(autouse=True)
def miniature_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(MINIATURE.parent))
    monkeypatch.syspath_prepend(str(MINIATURE))


def scene_of(*things):
    from world import Scene, Thing

    return Scene(tuple(Thing(*thing) for thing in things))


SCENE = (("red", "circle", "top-left"), ("go", "sign", "top-right"), ("blue", "cross", "bottom"))


def test_a_combination_belongs_to_one_split_and_test_scenes_have_one_that_training_has_not():
    from world import random_scene

    rng = random.Random(0)
    scenes = {split: [random_scene(rng, split) for _ in range(1500)] for split in ("train", "validation", "test")}
    seen = {split: {thing for scene in scenes[split] for thing in scene.things} for split in scenes}
    new = {split: seen[split] - seen["train"] for split in ("validation", "test")}
    assert new["validation"] and new["test"] and not new["validation"] & new["test"]
    assert all(set(scene.things) & new[split] for split in new for scene in scenes[split])
    for position in range(3):  # nothing else is new: every word of a new combination is in training scenes
        assert {thing[position] for thing in new["test"]} <= {thing[position] for thing in seen["train"]}


def test_a_careful_writer_states_only_what_is_true_and_a_careless_one_nothing_that_is():
    from language import Writer, caption, f1, facts, is_true
    from world import random_scene

    rng = random.Random(0)
    for _ in range(200):
        scene = random_scene(rng)
        text = caption(scene, Writer(care=1, completeness=1), rng)
        assert all(is_true(fact, scene) for fact in facts(text)) and f1(text, scene) == 1
        assert {fact[:2] for fact in facts(text)} == set(scene.kinds)
        text = caption(scene, Writer(care=0, completeness=1), rng)
        assert facts(text) and not any(is_true(fact, scene) for fact in facts(text)) and f1(text, scene) == 0


def test_the_quality_of_a_caption_is_the_f1_of_its_facts():
    from language import f1, facts

    scene = scene_of(*SCENE)
    text = "a red circle at the top-left, a green square at the bottom and a sign saying go at the bottom"
    assert facts(text) == [
        ("red", "circle"),
        ("red", "circle", "top-left"),
        ("green", "square"),
        ("green", "square", "bottom"),
        ("go", "sign"),
        ("go", "sign", "bottom"),
    ]
    precision, recall = 3 / 6, 2 / 3  # the circle, its place and the sign; two of three things
    assert f1(text, scene) == pytest.approx(2 * precision * recall / (precision + recall))
    assert f1("a red circle above a blue cross", scene) == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))
    assert f1("a blue cross above a red circle", scene) == pytest.approx(2 / 3)
    assert f1("a picture", scene) == 0


def test_questions_have_the_answers_of_the_scene():
    from language import ask

    scene, rng = scene_of(*SCENE), random.Random(0)
    circle = scene.things[:1]
    assert ask(scene, "count", rng).answer == "three"
    assert ask(scene, "read", rng).answer == "go"
    assert ask(scene, "colour", rng, circle)[1:] == ("what colour is at the top-left?", "red")
    assert ask(scene, "shape", rng, circle)[1:] == ("what shape is at the top-left?", "circle")
    answers = {
        "is the red circle left of the blue cross?": "yes",
        "is the red circle above the blue cross?": "yes",
        "is the blue cross left of the red circle?": "no",
        "is the blue cross above the red circle?": "no",
        "is there a red circle?": "yes",
        "is there a blue cross?": "yes",
    }
    for task in ("relation", "presence"):
        for _ in range(50):
            question = ask(scene, task, rng)
            assert question.answer == answers.get(question.question, "no")
    for _ in range(50):
        question = ask(scene, "compare", rng)
        assert question.answer in ("circle", "cross") and question.answer in question.question
    assert ask(scene_of(SCENE[1]), "colour", rng) is None, "a sign has no colour to ask for"


def test_words_read_at_once_are_the_sum_of_their_embeddings(tmp_path):
    import sentencepiece
    from library import read_all
    from tiny.llama import encode, train_llama
    from transformers import LlamaForCausalLM

    train_llama(tmp_path, [(read_all, 1)], num_texts=600)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert LlamaForCausalLM.from_pretrained(tmp_path).config.vocab_size == tokenizer.vocab_size()
    ids, labels = encode(tokenizer, [(("TOP", "RED"), False), ("a red", True)])
    assert [set(row) - {-1} for row in ids.tolist()] == [
        {1},
        {*tokenizer.encode("TOP"), *tokenizer.encode("RED")},
        *({token} for token in tokenizer.encode("a red")),
    ]
    assert labels.tolist() == [-100, -100, *tokenizer.encode("a red")]


def test_spread_is_told_apart_between_and_within_groups():
    from evaluate import spread_by_group

    values = torch.tensor([[1.0], [3.0], [10.0], [14.0]])
    between, within = spread_by_group(values, ["a", "a", "b", "b"])
    chance = (2 / 2 + 8 / 2) / 2  # variances 2 and 8, of two values each
    assert between == pytest.approx(math.sqrt((2 - 7) ** 2 + (12 - 7) ** 2 - chance))  # means 2 and 12
    assert within == pytest.approx(math.sqrt((2 + 8) / 2))


def test_a_gate_that_follows_the_task_has_a_separation_above_one_and_one_that_does_not_has_none():
    from findings import separation
    from language import TASKS

    same = {task: {"weights": [0.5, 0.5], "weights_spread": [0.1, 0.1], "count": 50} for task in TASKS}
    assert separation({"tasks": same}) == (0, 0)
    split = {
        task: {"weights": [0.9, 0.1] if index % 2 else [0.1, 0.9], "weights_spread": [0.1, 0.1], "count": 50}
        for index, task in enumerate(TASKS)
    }
    between = math.sqrt(0.4**2 * 8 / 7 - 0.1**2 / 50)  # eight means, less what the means of 50 differ by chance
    assert separation({"tasks": split}) == pytest.approx((between, between / 0.1))


def test_a_run_with_results_is_not_repeated_and_a_stage_1_is_trained_where_its_model_is_needed(tmp_path):
    from experiments import METHODS, STAGES_1
    from miniature import list_jobs

    results, output = tmp_path / "results", tmp_path / "output"
    results.mkdir()
    stage1, stage2 = list_jobs(results, output, None, range(5))
    assert len(stage2) == sum(len(method.seeds) for method in METHODS)
    assert {stage.name for stage, _ in stage1} == set(STAGES_1) and len(set(stage1)) == len(stage1)
    for spec, seed in (*stage1, *stage2):
        prefix = "stage1-" if spec in STAGES_1.values() else ""
        (results / f"{prefix}{spec.name}-{seed}.json").touch()
    assert list_jobs(results, output, None, range(5)) == ([], [])
    (results / "average-1.json").unlink()
    stage1, stage2 = list_jobs(results, output, None, range(5))
    assert [(spec.name, seed) for spec, seed in stage1 + stage2] == [("aligngpt", 1), ("average", 1)]


def test_the_report_is_what_the_results_say(tmp_path):
    from findings import write_report

    write_report(MINIATURE / "results", tmp_path)
    assert (tmp_path / "report.md").read_text() == (MINIATURE / "report.md").read_text()
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures and all((MINIATURE / name).exists() for name in pictures)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_reduced_version_learns_what_a_level_means_and_to_answer(tmp_path):
    command = [sys.executable, str(MINIATURE / "miniature.py"), "--size", "reduced", "--seeds", "0"]
    command += ["--only", "llava", "aligngpt", "stage1-aligngpt", "--output_dir", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]

    levels = json.loads((tmp_path / "reduced" / "results" / "stage1-aligngpt-0.json").read_text())["levels"]
    from findings import rank_correlation

    for measure in ("similarity", "precision"):
        values = [level[measure] for level in levels]
        assert rank_correlation(values) > 0.5, (measure, values)
        assert sum(values[-2:]) - sum(values[:2]) > 0.1, (measure, values)
    means = {}
    for name in ("llava", "aligngpt"):
        tasks = json.loads((tmp_path / "reduced" / "results" / f"{name}-0.json").read_text())["tasks"]
        means[name] = sum(task["score"] for task in tasks.values()) / len(tasks)
    assert means["llava"] > 0.4 and means["aligngpt"] > means["llava"] - 0.05, means
