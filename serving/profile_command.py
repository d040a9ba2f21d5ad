"""
`aligngpt profile`: what a model's gate chooses, question by question and group by group.

    aligngpt profile demo_output/stage2 --data questions.jsonl --image_folder images --by type --output_dir profile

Questions are records of any form that `aligngpt chat --input` takes; `--by` names their field that groups them.
Written are `profile.json`, with mean and standard deviation of each level's weight in each group, `weights.jsonl`,
with the weights of each question, and `profile.png`, where matplotlib is installed.
"""

import json
import logging
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligngpt.processing.command_line import parse_command
from aligngpt.processing.command_output import Mistakes

from .arguments import ModelArguments
from .loading import load_model


if TYPE_CHECKING:
    from .answering import Assistant


logger = logging.getLogger(__name__)

ALL = "all"
NO_GROUP = "(none)"


@dataclass
class ProfileArguments(ModelArguments):
    """Which model, which questions."""

    data: str | None = field(default=None, metadata={"help": "The questions."})
    output_dir: str = field(default="profile", metadata={"help": "Folder to write to."})
    image_folder: str | None = field(default=None, metadata={"help": "Where paths of images start."})
    by: str | None = field(default=None, metadata={"help": "Field of the records that groups them, such as type."})
    system: str | None = field(default=None, metadata={"help": "System message, if conversations have none."})
    batch_size: int = field(default=8, metadata={"help": "Questions at a time."})


def main(arguments: list[str]) -> None:
    """The command `aligngpt profile`."""
    args = parse_command(ProfileArguments, arguments, "profile", __doc__, first="model", new_output=True)
    problems = args.find_problems()
    if args.data is None:
        problems.append("--data must be given (aligngpt profile --help tells all options)")
    if args.batch_size < 1:
        problems.append(f"--batch_size {args.batch_size}: one question at a time is the least.")
    if problems:
        raise Mistakes(problems)
    from aligngpt.processing.atomic_output import new_folder, write_json

    from .answering import Assistant

    assistant = Assistant(*load_model(args))
    rows, faults = read_weights(assistant, args)
    if not rows:
        raise ValueError(f"The gate ran for no question of {args.data} (faults: {dict(faults)}).")
    groups = summarise(rows)
    with new_folder(args.output_dir) as folder:
        write_json(folder / "profile.json", {"model": args.model, "by": args.by, "groups": groups, "faults": faults})
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "weights.jsonl").write_text("".join(lines), encoding="utf-8")
        draw(groups, folder / "profile.png")
    show(groups, faults)
    logger.info("Written to %s.", args.output_dir)


def read_weights(assistant: "Assistant", args: ProfileArguments) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """
    The gate's weights of each question with a picture, and how many records of each kind of fault there were;
    `no_picture` among them.
    """
    from tqdm import tqdm

    from aligngpt.processing.corpus.faults import Fault
    from aligngpt.processing.corpus.images import open_image
    from aligngpt.processing.corpus.sources import open_corpus

    from .answering import in_batch
    from .conversations import read_question, to_conversation

    assert args.data is not None
    rows: list[dict[str, Any]] = []
    faults: Counter[str] = Counter()
    records = (record for shard in open_corpus(args.data) for record in shard.read(0))
    progress = tqdm(unit="question")
    while batch := list(islice(records, args.batch_size)):
        read = []
        for record in batch:
            try:
                sample, _ = read_question(record)
                if not sample.images:
                    faults["no_picture"] += 1
                    continue
                conversation = to_conversation(
                    sample, lambda image: open_image(image, args.image_folder)[0], args.system
                )
                group = NO_GROUP if args.by is None or record.get(args.by) is None else str(record[args.by])
                read.append(({"id": sample.id, "group": ALL if args.by is None else group}, conversation))
            except Fault as fault:
                faults[fault.kind] += 1
        weighed = in_batch(
            lambda chats: assistant.weights(assistant.prepare(chats)).tolist(),
            [conversation for _, conversation in read],
        )
        for (row, _), found in zip(read, weighed, strict=True):
            if isinstance(found, Fault):
                faults[found.kind] += 1
            else:
                rows.append({**row, "alignment_weights": found})
        progress.update(len(batch))
    progress.close()
    return rows, dict(faults)


def summarise(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each group, and of all: how many questions, and mean and standard deviation of each level's weight."""
    import numpy as np

    names = sorted({row["group"] for row in rows})
    groups = {name: [row["alignment_weights"] for row in rows if row["group"] == name] for name in names}
    if len(groups) > 1:
        groups[ALL] = [row["alignment_weights"] for row in rows]
    summary = {}
    for name, weights in groups.items():
        table = np.asarray(weights)
        spread = table.std(0, ddof=1) if len(table) > 1 else np.zeros(table.shape[1])
        summary[name] = {"count": len(table), "mean": table.mean(0).tolist(), "std": spread.tolist()}
    return summary


def show(groups: dict[str, dict[str, Any]], faults: dict[str, int]) -> None:
    """The table, on the terminal."""
    from rich.console import Console
    from rich.table import Table

    number = len(next(iter(groups.values()))["mean"])
    table = Table("group", "questions", *(f"level {level}" for level in range(number)))
    for name, group in groups.items():
        cells = (f"{mean:.3f} ± {std:.3f}" for mean, std in zip(group["mean"], group["std"], strict=True))
        table.add_row(name, str(group["count"]), *cells)
    console = Console(highlight=False)
    console.print(table)
    console.print("Mean and standard deviation of the gate's weights, of the levels below the best.")
    if faults:
        console.print("Left out: " + ", ".join(f"{kind}: {count}" for kind, count in faults.items()))


def draw(groups: dict[str, dict[str, Any]], path: Path) -> None:
    """The picture: a line for each group, with bars of a standard deviation."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("profile.png needs matplotlib: pip install 'aligngpt[data]'.")
        return
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(groups)
    for place, (name, group) in enumerate(groups.items()):
        positions = [level + (place - (len(groups) - 1) / 2) * width for level in range(len(group["mean"]))]
        label = f"{name} ({group['count']})"
        axes.bar(positions, group["mean"], width, yerr=group["std"], label=label, capsize=2)
    axes.set_xlabel("alignment level (the best is always there)")
    axes.set_ylabel("weight of the gate: mean, standard deviation")
    axes.set_xticks(range(len(next(iter(groups.values()))["mean"])))
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
