"""The gate's weights as bars of text."""

from collections.abc import Sequence


WIDTH = 40  # characters of a weight of 1


def draw_bars(weights: Sequence[float]) -> str:
    """A line for each level below the best: its number, its weight, a bar as long as the weight."""
    lines = (f"  level {level}  {weight:.3f}  {'█' * round(WIDTH * weight)}" for level, weight in enumerate(weights))
    return "\n".join(line.rstrip() for line in lines)
