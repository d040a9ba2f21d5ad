"""
What the demo prints and writes about itself: tables, what counts as good enough, and the model card.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np
from huggingface_hub import ModelCard, ModelCardData
from rich.console import Console
from rich.table import Table
from texts import QUALITIES


MINIMUM_ACCURACY = {"colour": 0.9, "count": 0.9, "shape": 0.7}
MINIMUM_PRECISION_GAIN = 0.3  # of the facts stated at the highest level over those at the lowest
HERE = Path(__file__).parent


def show_scores(console: Console, pairs: list[dict]) -> None:
    """How CLIP scored captions of each quality, and which levels they fell into."""
    levels = max(pair["alignment_level"] for pair in pairs) + 1
    table = Table(
        title="CLIP similarity, and captions per level, by the quality of the caption (which the scorer does not know)"
    )
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


def show_results(console: Console, results: dict) -> None:
    """Captions by level, answers, accuracy and gate weights per type of question, time per phase."""
    precision = results["precision"]
    lowest, highest = min(precision, key=int), max(precision, key=int)
    table = Table(title="Stage 1: what it says of the same picture when asked for its worst and its best level")
    for column in ("picture", f"level {lowest}", f"level {highest}"):
        table.add_column(column, overflow="fold")
    for index, name in enumerate(results["images"][:4]):
        table.add_row(name, *(results["captions"][level][index] for level in (lowest, highest)))
    console.print(table)

    table = Table(title="Stage 1: share of the facts in its captions that are true, by level asked for")
    for level in precision:
        table.add_column(level, justify="right")
    table.add_row(*("-" if value is None else f"{value:.2f}" for value in precision.values()))
    console.print(table)

    table = Table(title="Stage 2: answers about unseen combinations")
    for column in ("type", "question", "answer", "given"):
        table.add_column(column, overflow="fold")
    for kind, result in results["questions"].items():
        for example in result["examples"][:2]:
            table.add_row(kind, example["question"], example["answer"], example["given"])
    console.print(table)

    table = Table(title="Stage 2: accuracy, and the gate's mean weights of the local alignment embeddings")
    for column in ("type", "questions", "accuracy", "weights of levels 0.."):
        table.add_column(column, justify="left" if column == "type" else "right")
    for kind, result in results["questions"].items():
        weights = " ".join(f"{weight:.2f}" for weight in result["weights"])
        table.add_row(kind, str(result["count"]), f"{result['accuracy']:.2f}", weights)
    console.print(table)

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
    precision = {int(level): value or 0.0 for level, value in results["precision"].items()}
    gain = precision[max(precision)] - precision[min(precision)]
    if gain < MINIMUM_PRECISION_GAIN:
        failures.append(
            f"Facts at level {max(precision)} are {gain:.2f} more often true than at level {min(precision)}, below "
            f"{MINIMUM_PRECISION_GAIN}."
        )
    return failures


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
        precision={level: value for level, value in results["precision"].items() if value is not None},
        minutes=sum(results["times"].values()) / 60,
    )
    card.save(folder / "README.md")
    return str(card)
