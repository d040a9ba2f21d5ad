"""
What the demo prints and writes about itself: tables, a page and a picture to look at, and the model card. Nothing is
said here that was not computed in the same run.
"""

import base64
import textwrap
from collections import defaultdict
from pathlib import Path

import jinja2
import numpy as np
from huggingface_hub import ModelCard, ModelCardData
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table
from texts import QUALITIES


MINIMUM_ACCURACY = {"colour": 0.9, "count": 0.9, "shape": 0.7}
MINIMUM_PRECISION_GAIN = 0.15  # of the facts stated at the highest level over those at the lowest
HERE = Path(__file__).parent
RIGHT, WRONG = "\u2713", "\u2717"


def show_scores(console: Console, pairs: list[dict]) -> None:
    """How CLIP scored captions of each quality, and which levels they fell into."""
    levels = max(pair["alignment_level"] for pair in pairs) + 1
    table = Table(title="Captions per level, by their quality, which the scorer does not know")
    for column in ("caption", "mean similarity", *(str(level) for level in range(levels))):
        table.add_column(column, justify="left" if column == "caption" else "right")
    by_quality = defaultdict(list)
    for pair in pairs:
        by_quality[pair["quality"]].append(pair)
    for quality in QUALITIES:
        rows = by_quality[quality]
        counts = np.bincount([row["alignment_level"] for row in rows], minlength=levels)
        mean = np.mean([row["alignment_score"] for row in rows])
        table.add_row(quality, f"{mean:.2f}", *(str(count) for count in counts))
    console.print(table)


def get_precision(results: dict) -> dict[int, float | None]:
    """The share of the facts stated at each level that are true; None where none was stated."""
    sums = {
        int(level): (sum(caption["true"] for caption in captions), sum(caption["stated"] for caption in captions))
        for level, captions in results["captions"].items()
    }
    return {level: true / stated if stated else None for level, (true, stated) in sums.items()}


def say_levels(results: dict) -> str:
    """What the level that was asked for did to the captions, in a sentence that the numbers of this run allow."""
    precision = {level: value or 0.0 for level, value in get_precision(results).items()}
    lowest, highest = min(precision, key=int), max(precision, key=int)
    text = f"{precision[lowest]:.0%} of what it says of a picture is true at level {lowest}, the worst, and "
    text += f"{precision[highest]:.0%} at level {highest}, the best"
    gain = precision[highest] - precision[lowest]
    return f"{text}: the level steers the captions." if gain > 0.1 else f"{text}: no effect of the level in this run."


def mark(caption: dict) -> str:
    """A caption's mark: right if all that it states is true, wrong if anything is not, none if it states nothing."""
    return "" if not caption["stated"] else RIGHT if caption["true"] == caption["stated"] else WRONG


def show_results(console: Console, results: dict) -> None:
    """Captions by level, accuracy beside chance and LLaVA, time per phase."""
    lowest, highest = (choose(results["captions"], key=int) for choose in (min, max))
    table = Table(title="Stage 1 is asked to describe the same picture, at its worst and at its best level")
    for column in ("picture", f"level {lowest}", f"level {highest}"):
        table.add_column(column, overflow="fold")
    for index, name in enumerate(results["pictures"][:4]):
        captions = [results["captions"][level][index] for level in (lowest, highest)]
        table.add_row(name, *(f"{mark(caption)} {caption['text']}".strip() for caption in captions))
    console.print(table)
    console.print(say_levels(results), highlight=False)

    table = Table(title="Stage 2: share of right answers about combinations that no training picture had")
    for column in ("questions about", "number", "without looking", "LLaVA", "AlignGPT"):
        table.add_column(column, justify="left" if column == "questions about" else "right")
    for kind, result in results["questions"].items():
        table.add_row(kind, str(result["count"]), *(f"{result[name]:.2f}" for name in ("chance", "llava", "accuracy")))
    console.print(table)
    console.print(
        "Without looking: always the most frequent answer. LLaVA: the same data, scripts and steps without the "
        "alignment vector. One small run each: no proof for either.",
        highlight=False,
    )

    table = Table(title="Time")
    table.add_column("phase")
    table.add_column("seconds", justify="right")
    for title, seconds in results["times"].items():
        table.add_row(title, f"{seconds:.0f}")
    console.print(table)


def check_results(results: dict) -> list[str]:
    """What is below the demo's minimum, one sentence each."""
    failures = [
        f"Accuracy of {kind} questions is {results['questions'][kind]['accuracy']:.2f}, below {minimum}."
        for kind, minimum in MINIMUM_ACCURACY.items()
        if results["questions"][kind]["accuracy"] < minimum
    ]
    precision = {level: value or 0.0 for level, value in get_precision(results).items()}
    gain = precision[max(precision)] - precision[min(precision)]
    if gain < MINIMUM_PRECISION_GAIN:
        failures.append(
            f"Facts at level {max(precision)} are {gain:.2f} more often true than at level {min(precision)}, below "
            f"{MINIMUM_PRECISION_GAIN}."
        )
    return failures


def write_page(results: dict, data: Path, path: Path, num_pictures: int = 24) -> None:
    """A page that needs no other file: pictures beside captions and answers, each marked right or wrong."""
    lowest, highest = (choose(results["captions"], key=int) for choose in (min, max))
    pictures = []
    for index, name in enumerate(results["pictures"][:num_pictures]):
        rows = [row for result in results["questions"].values() for row in result["rows"] if row["image"] == name]
        captions = {level: results["captions"][level][index] for level in (lowest, highest)}
        png = base64.b64encode((data / name).read_bytes()).decode()
        pictures.append({"png": png, "captions": captions, "rows": rows})
    template = jinja2.Environment(autoescape=True).from_string((HERE / "report.html.jinja").read_text("utf-8"))
    page = template.render(pictures=pictures, results=results, sentence=say_levels(results), mark=mark)
    path.write_text(page, encoding="utf-8")


def write_picture(results: dict, data: Path, path: Path, num_pictures: int = 6) -> None:
    """The same of a few pictures, as a picture."""
    lowest, highest = (choose(results["captions"], key=int) for choose in (min, max))
    figure = Figure(figsize=(13, 1.9 * num_pictures))
    grid = figure.subplots(num_pictures, 2, width_ratios=(1, 7), squeeze=False)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=0.01, wspace=0.02)
    for index, name in enumerate(results["pictures"][:num_pictures]):
        picture, text = grid[index]
        picture.imshow(np.asarray(Image.open(data / name).convert("RGB")), interpolation="nearest")
        rows = [row for result in results["questions"].values() for row in result["rows"] if row["image"] == name]
        lines = [
            (f"level {level}: {results['captions'][level][index]['text']}", mark(results["captions"][level][index]))
            for level in (lowest, highest)
        ]
        lines += [(f"{r['question']} {r['given']}", RIGHT if r["given"] == r["answer"] else WRONG) for r in rows]
        for number, (line, sign) in enumerate(lines):
            colour = {RIGHT: "#15803d", WRONG: "#b91c1c"}.get(sign, "#334155")
            line = textwrap.shorten(line, 150, placeholder=" ...")
            text.text(0, 0.95 - number / len(lines), f"{sign or ' '}  {line}", color=colour, va="top", fontsize=9.5)
        for axes in (picture, text):
            axes.set_axis_off()
    figure.savefig(path, dpi=90)


def write_model_card(results: dict, folder: Path) -> str:
    """The card of the demo's model, with the numbers of this run; written into its folder and returned."""
    data = ModelCardData(
        license="apache-2.0",
        language="en",
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["aligngpt", "custom_code"],
    )
    card = ModelCard.from_template(
        data,
        template_path=str(HERE / "model_card_template.md"),
        questions=results["questions"],
        precision={level: value for level, value in get_precision(results).items() if value is not None},
        minutes=sum(results["times"].values()) / 60,
    )
    card.save(folder / "README.md")
    return str(card)
