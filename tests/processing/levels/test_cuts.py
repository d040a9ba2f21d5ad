"""Scores to levels, against a slow bucket by sorting."""

import json

import numpy as np
import pytest

from aligngpt.processing import LevelCuts, cut_into_levels
from aligngpt.processing.levels.cuts import ScoreHistogram


def slow_levels(scores, num_levels):
    """Equation 1 by ranks: sort (score, row), then deal the ranks out in N equal shares."""
    ranked = sorted(range(len(scores)), key=lambda row: (round(scores[row], 4), row))
    levels = [None] * len(scores)
    for rank, row in enumerate(ranked):
        levels[row] = rank * num_levels // len(scores)
    return levels


@pytest.mark.parametrize("num_levels", [2, 8, 10])
@pytest.mark.parametrize("count", [10, 1001])
def test_equal_frequency_levels_are_equal_shares_of_the_ranks(num_levels, count):
    scores = np.random.default_rng(0).normal(0.2, 0.05, size=count)
    levels, cuts = cut_into_levels(scores, num_levels)
    assert levels.tolist() == slow_levels(scores.tolist(), num_levels)
    counts = np.bincount(levels, minlength=num_levels)
    assert counts.max() - counts.min() <= 1
    for level, cut in enumerate(cuts.cut_points, start=1):
        assert cut == np.round(scores[levels == level], 4).min()


@pytest.mark.parametrize("chunk", [1, 7, 500, 1001])
def test_levels_do_not_depend_on_the_chunks_in_which_scores_come(chunk):
    # Few values: ties at every cut, and across chunks
    scores = np.random.default_rng(1).integers(0, 30, size=1001).astype(np.float32) / 100
    histogram = ScoreHistogram()
    for start in range(0, len(scores), chunk):
        histogram.add(scores[start : start + chunk])
    next_levels = histogram.rank_levels(8)
    levels = np.concatenate([next_levels(scores[start : start + chunk]) for start in range(0, len(scores), chunk)])
    assert levels.tolist() == slow_levels(scores.tolist(), 8)


def test_scores_that_differ_by_less_than_rounding_get_the_same_levels():
    scores = np.random.default_rng(2).integers(-9000, 9000, size=1000) / 10_000
    noise = np.random.default_rng(3).uniform(-4e-5, 4e-5, size=1000)
    np.testing.assert_array_equal(cut_into_levels(scores + noise, 8)[0], cut_into_levels(scores, 8)[0])


def test_ties_are_broken_by_row():
    levels, _ = cut_into_levels(np.array([0.5, 0.1, 0.50001, 0.1]), 2)
    assert levels.tolist() == [1, 0, 1, 0]
    assert cut_into_levels(np.full(8, 0.3), 4)[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_equal_width_levels_cut_the_range_evenly():
    levels, cuts = cut_into_levels(np.array([0.0, 0.1, 0.3, 0.6, 1.0]), 4, "equal-width")
    assert cuts.cut_points == [0.25, 0.5, 0.75]
    assert levels.tolist() == [0, 0, 1, 2, 3]


def test_the_side_file_tells_how_the_levels_were_made(tmp_path):
    _, cuts = cut_into_levels(np.arange(4) / 10, 2, scorer="openai/clip", scorer_revision="abc")
    cuts.save(tmp_path / "alignment_levels.json")
    assert json.loads((tmp_path / "alignment_levels.json").read_text()) == {
        "rule": "equal-frequency",
        "num_levels": 2,
        "cut_points": [0.2],
        "count": 4,
        "scorer": "openai/clip",
        "scorer_revision": "abc",
        "seed": None,
        "min_level": 0,
    }


@pytest.mark.parametrize("rule", ["equal-frequency", "equal-width"])
def test_saved_cut_points_put_other_scores_into_their_levels(rule, tmp_path):
    generator = np.random.default_rng(4)
    _, cuts = cut_into_levels(generator.uniform(0, 0.3, size=500), 5, rule)
    cuts.save(tmp_path / "cuts.json")
    others = np.append(generator.uniform(-0.1, 0.4, size=200), cuts.cut_points)
    expected = [sum(round(score, 4) >= round(cut, 4) for cut in cuts.cut_points) for score in others]
    assert LevelCuts.load(tmp_path / "cuts.json").apply(others).tolist() == expected


def test_old_cut_points_give_distinct_scores_their_old_levels():
    scores = np.random.default_rng(5).permutation(2000) / 10_000
    levels, cuts = cut_into_levels(scores, 8)
    np.testing.assert_array_equal(cuts.apply(scores), levels)


@pytest.mark.parametrize("points", [[], [0.2], [0.3, 0.2]])
def test_a_side_file_without_usable_cut_points_is_refused(points, tmp_path):
    LevelCuts("equal-width", 3, points, 10).save(tmp_path / "cuts.json")
    with pytest.raises(ValueError, match="no 3 - 1 ascending cut points"):
        LevelCuts.load(tmp_path / "cuts.json")


def test_a_file_of_another_kind_holds_no_cut_points(tmp_path):
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="is no alignment_levels.json"):
        LevelCuts.load(tmp_path / "list.json")


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ([0.1, 0.2], {}, "2 scores cannot be cut into 8 levels"),
        ([0.1, 0.2], {"num_levels": 1}, "N >= 2"),
        ([0.1, float("nan")], {"num_levels": 2}, "Score 1 is nan, not a cosine similarity"),
        ([0.1, 0.2, 24.7], {"num_levels": 2}, "Score 2 is 24.7, not a cosine similarity"),
        ([0.1, 0.2], {"num_levels": 2, "rule": "even"}, "no rule 'even'"),
    ],
)
def test_what_cannot_be_cut_is_refused(scores, options, message):
    with pytest.raises(ValueError, match=message):
        cut_into_levels(np.array(scores), **options)
