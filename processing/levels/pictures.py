"""Pictures of alignment levels: how the scores were cut, and pairs of each level."""

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from aligngpt.processing.corpus.images import open_image

from .cuts import STEPS, LevelCuts, ScoreHistogram
from .outputs import LevelSummary


BINS = 120
SHOWN_LEVELS = 32  # a sheet of hundreds takes minutes, and nobody looks at it


def draw_levels(path: Path, histogram: ScoreHistogram, cuts: LevelCuts, summary: LevelSummary) -> None:
    """The scores' distribution with the cut points; where there are no cut points, how many pairs a level has."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    if cuts.cut_points and len(histogram):
        used = np.flatnonzero(histogram.counts)
        lowest, highest = used[0] - STEPS, used[-1] - STEPS
        values = np.arange(lowest, highest + 1) / STEPS
        edges = np.linspace(values[0] - 0.5 / STEPS, values[-1] + 0.5 / STEPS, min(BINS, len(values)) + 1)
        axes.hist(values, edges, weights=histogram.counts[used[0] : used[-1] + 1], color="0.7")
        for level, cut in enumerate(cuts.cut_points, start=1):
            axes.axvline(cut, color="C3", linewidth=1)
            axes.text(cut, axes.get_ylim()[1], f" {level}", ha="left", va="top", fontsize=8, color="C3")
        axes.set_xlabel("alignment score (cosine similarity); a line is the lowest score of its level")
        axes.set_ylabel("pairs")
    else:
        axes.bar(np.arange(cuts.num_levels), summary.counts, color="0.7")
        axes.set_xlabel("alignment level")
        axes.set_ylabel("pairs")
    by = f", scored by {cuts.scorer}" if cuts.scorer else ""
    axes.set_title(f"{cuts.count:,} pairs in {cuts.num_levels} levels, {cuts.rule}{by}", fontsize=10, parse_math=False)
    FigureCanvasAgg(figure).print_png(path)


def draw_samples(path: Path, summary: LevelSummary, image_folder: str | None) -> None:
    """A sheet with some pairs of each level, a level a row, worst first."""
    samples = summary.samples()[:SHOWN_LEVELS]
    columns = max(1, summary.samples_per_level)
    figure = Figure(figsize=(2.2 * columns, 2.6 * len(samples)), layout="constrained")
    for level, axes_of_level in enumerate(figure.subplots(len(samples), columns, squeeze=False)):
        axes_of_level[0].set_title(f"level {level}", loc="left", fontsize=10, fontweight="bold")
        for axes, row in zip(axes_of_level, samples[level], strict=False):
            try:
                axes.imshow(open_image(row["image"], image_folder)[0])
            except ValueError as error:  # moved since it was scored; the captions are still worth a look
                axes.text(
                    0.5, 0.5, textwrap.fill(str(error), 26), ha="center", va="center", fontsize=6, parse_math=False
                )
            caption = textwrap.shorten(row["caption"] or "", 110)
            score = "" if row["alignment_score"] is None else f"{row['alignment_score']:.3f}  "
            axes.set_xlabel(textwrap.fill(score + caption, 30), fontsize=7, parse_math=False)
        for axes in axes_of_level:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    FigureCanvasAgg(figure).print_png(path)
