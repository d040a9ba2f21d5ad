"""Alignment levels: scores cut into N degrees of alignment, l = bucket(s) of equation 1. 0 is the worst."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np


STEPS = 10_000  # scores are rounded to 1e-4: other batch shapes and devices move a score by less


@dataclass(frozen=True)
class LevelCuts:
    """
    How scores became levels; stored beside the data as `alignment_levels.json`.

    Args:
        rule (`str`): `"equal-frequency"` (the paper's ranks), `"equal-width"`, `"random"` (the ablation), or `"given"`
            (the data came with levels).
        num_levels (`int`): N.
        cut_points (`list[float]`): the N-1 lowest scores of levels 1..N-1; empty where no score was looked at.
        count (`int`): number of pairs that were cut.
        scorer (`str`, *optional*): id of the model that scored them.
        scorer_revision (`str`, *optional*): its revision.
        seed (`int`, *optional*): of random levels.
        min_level (`int`): pairs of lower levels were left out of the data.
    """

    rule: Literal["equal-frequency", "equal-width", "random", "given"]
    num_levels: int
    cut_points: list[float]
    count: int
    scorer: str | None = None
    scorer_revision: str | None = None
    seed: int | None = None
    min_level: int = 0

    def save(self, path: str | Path) -> None:
        """Writes the side file."""
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "LevelCuts":
        """
        Reads a side file.

        Raises:
            ValueError: if the file is another one, or does not hold N-1 ascending cut points.
        """
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(values, dict) or not {"rule", "num_levels", "cut_points", "count"} <= values.keys():
            raise ValueError(f"{path} is no alignment_levels.json, which has rule, num_levels, cut_points and count.")
        names = {field.name for field in fields(cls)}
        cuts = cls(**{name: value for name, value in values.items() if name in names})
        points = cuts.cut_points
        if not points or len(points) != cuts.num_levels - 1 or sorted(points) != points:
            raise ValueError(f"{path} has no {cuts.num_levels} - 1 ascending cut points: {points}")
        return cuts

    def apply(self, scores: np.ndarray) -> np.ndarray:
        """
        The levels of other scores by these cut points, int64. Where many pairs of the old data tied at a cut point,
        all of them are on its upper side here.
        """
        return np.searchsorted(np.rint(np.multiply(self.cut_points, STEPS)), _to_steps(scores), side="right")


class ScoreHistogram:
    """
    How many scores there are of each rounded value: all that cutting needs to know, however many there are.

    `counts` is int64 of shape (2 * 10,000 + 1,), from -1 to 1 in steps of 1e-4.
    """

    def __init__(self):
        self.counts = np.zeros(2 * STEPS + 1, dtype=np.int64)

    def __len__(self) -> int:
        return int(self.counts.sum())

    def add(self, scores: np.ndarray) -> None:
        """
        Counts scores.

        Raises:
            ValueError: if one is not between -1 and 1; the message names it by its place among all.
        """
        with np.errstate(invalid="ignore"):
            wrong = np.flatnonzero(~(np.abs(scores) <= 1 + 0.5 / STEPS))
        if len(wrong):
            value = np.asarray(scores)[wrong[0]]
            raise ValueError(
                f"Score {len(self) + int(wrong[0])} is {value}, not a cosine similarity between -1 and 1."
            )
        self.counts += np.bincount(_to_steps(scores) + STEPS, minlength=len(self.counts))

    def cut(self, num_levels: int, rule: Literal["equal-frequency", "equal-width"]) -> list[float]:
        """
        The lowest score of each level but the first.

        Raises:
            ValueError: if there are fewer than two levels, fewer scores than levels, or no such rule.
        """
        count = len(self)
        if num_levels < 2 or count < num_levels:
            raise ValueError(f"{count} scores cannot be cut into {num_levels} levels: need N >= 2 and N scores.")
        if rule == "equal-frequency":
            # The first rank of level l is the lowest r with r * N // count == l
            ranks = [-(-level * count // num_levels) for level in range(1, num_levels)]
            steps = np.searchsorted(np.cumsum(self.counts), ranks, side="right")
            return ((steps - STEPS) / STEPS).tolist()
        if rule == "equal-width":
            lowest, highest = (np.flatnonzero(self.counts)[[0, -1]] - STEPS) / STEPS
            return (np.rint(np.linspace(lowest, highest, num_levels + 1)[1:-1] * STEPS) / STEPS).tolist()
        raise ValueError(f"There is no rule {rule!r}; the rules are equal-frequency and equal-width.")

    def rank_levels(self, num_levels: int) -> Callable[[np.ndarray], np.ndarray]:
        """
        A function from the scores that were counted, in their order, chunk by chunk, to their equal-frequency levels,
        int64: the N shares of the ranks are equal to one, because ties are broken by order.
        """
        count, ranks_below = len(self), np.cumsum(self.counts) - self.counts

        def next_levels(scores: np.ndarray) -> np.ndarray:
            steps = _to_steps(scores) + STEPS
            order = np.argsort(steps, kind="stable")
            ordered = steps[order]
            ties_before = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
            levels = np.empty(len(ordered), dtype=np.int64)
            levels[order] = (ranks_below[ordered] + ties_before) * num_levels // count
            np.add(ranks_below, np.bincount(ordered, minlength=len(ranks_below)), out=ranks_below)
            return levels

        return next_levels


def cut_into_levels(
    scores: np.ndarray,
    num_levels: int = 8,
    rule: Literal["equal-frequency", "equal-width"] = "equal-frequency",
    scorer: str | None = None,
    scorer_revision: str | None = None,
) -> tuple[np.ndarray, LevelCuts]:
    """
    The level of each score, int64 in 0..N-1, and how they were cut. Equal-frequency levels differ by at most one in
    size: scores are rounded to 1e-4 and ties are broken by position, so that reruns agree.

    Raises:
        ValueError: if there are fewer than two levels, fewer scores than levels, a score that is no cosine similarity,
            or a rule that does not exist.
    """
    histogram = ScoreHistogram()
    histogram.add(np.asarray(scores))
    cuts = LevelCuts(rule, num_levels, histogram.cut(num_levels, rule), len(histogram), scorer, scorer_revision)
    if rule == "equal-frequency":
        return histogram.rank_levels(num_levels)(np.asarray(scores)), cuts
    return cuts.apply(scores), cuts


def _to_steps(scores: np.ndarray) -> np.ndarray:
    return np.rint(np.multiply(scores, STEPS, dtype=np.float64)).astype(np.int32)
