"""Alignment levels: scores cut into N degrees of alignment, l = bucket(s) of equation 1. 0 is the worst."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np


SCORE_DECIMALS = 4  # other batch shapes and devices move a score by less


@dataclass(frozen=True)
class LevelCuts:
    """
    How scores became levels; stored beside the data as `alignment_levels.json`.

    Args:
        rule (`str`): `"equal-frequency"` (the paper's ranks) or `"equal-width"`.
        num_levels (`int`): N.
        cut_points (`list[float]`): the N-1 lowest scores of levels 1..N-1.
        count (`int`): number of pairs that were cut.
        scorer (`str`, *optional*): id of the model that scored them.
        scorer_revision (`str`, *optional*): its revision.
    """

    rule: Literal["equal-frequency", "equal-width"]
    num_levels: int
    cut_points: list[float]
    count: int
    scorer: str | None = None
    scorer_revision: str | None = None

    def save(self, path: str | Path) -> None:
        """Writes the side file."""
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


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
        ValueError: if there are fewer than two levels, fewer scores than levels, a score that is no number, or a rule
            that does not exist.
    """
    scores = np.round(np.asarray(scores, dtype=np.float64), SCORE_DECIMALS)
    if num_levels < 2 or len(scores) < num_levels:
        raise ValueError(f"{len(scores)} scores cannot be cut into {num_levels} levels: need N >= 2 and N scores.")
    if not np.isfinite(scores).all():
        raise ValueError(f"The score of row {int(np.flatnonzero(~np.isfinite(scores))[0])} is not a finite number.")
    if rule == "equal-frequency":
        order = np.argsort(scores, kind="stable")
        levels = np.empty(len(scores), dtype=np.int64)
        levels[order] = np.arange(len(scores)) * num_levels // len(scores)
        # The first row of level l in rank order is the lowest index i with i * N // count == l
        cut_points = scores[order][[-(-level * len(scores) // num_levels) for level in range(1, num_levels)]]
    elif rule == "equal-width":
        cut_points = np.linspace(scores.min(), scores.max(), num_levels + 1)[1:-1]
        levels = np.searchsorted(cut_points, scores, side="right").astype(np.int64)
    else:
        raise ValueError(f"There is no rule {rule!r}; the rules are equal-frequency and equal-width.")
    return levels, LevelCuts(rule, num_levels, cut_points.tolist(), len(scores), scorer, scorer_revision)
