"""Scores to levels, against a slow bucket by sorting."""

import json

import numpy as np
import pytest

from aligngpt.processing import cut_into_levels


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
    scores = np.random.default_rng(0).normal(size=count)
    levels, cuts = cut_into_levels(scores, num_levels)
    assert levels.tolist() == slow_levels(scores.tolist(), num_levels)
    counts = np.bincount(levels, minlength=num_levels)
    assert counts.max() - counts.min() <= 1
    for level, cut in enumerate(cuts.cut_points, start=1):
        assert cut == np.round(scores[levels == level], 4).min()


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
    }


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ([0.1, 0.2], {}, "2 scores cannot be cut into 8 levels"),
        ([0.1, 0.2], {"num_levels": 1}, "N >= 2"),
        ([0.1, float("nan")], {"num_levels": 2}, "row 1 is not a finite number"),
        ([0.1, 0.2], {"num_levels": 2, "rule": "even"}, "no rule 'even'"),
    ],
)
def test_what_cannot_be_cut_is_refused(scores, options, message):
    with pytest.raises(ValueError, match=message):
        cut_into_levels(np.array(scores), **options)
