"""
AlignGPT from nothing to answers, in about six minutes on two CPU cores: draws captioned pictures, trains a tiny CLIP
and a tiny LLaMA, scores how well each caption fits its picture, trains both AlignGPT stages, and asks about pictures
with combinations of colour, shape and place that no training picture had.

    make demo                                     (or: python examples/demo/demo.py)
    python examples/demo/demo.py --output_dir X   somewhere else than demo_output

Every step is the real thing: the scripts and settings are those that train the 7B model. Pictures, CLIP and LLaMA are
kept in the output folder and used again. Exits with 1 if the answers are worse than they should be.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from datasets import load_dataset
from rich.console import Console


sys.path.append(str(Path(__file__).parents[1]))  # for tiny/, which the demo shares with the miniature experiment

from reading import example  # noqa: E402
from report import check_results, show_results, show_scores, write_model_card  # noqa: E402
from scenes import IMAGE_SIZE  # noqa: E402
from tiny.clip import train_clip  # noqa: E402
from tiny.llama import train_llama  # noqa: E402
from write_data import write_conversations, write_pairs, write_questions, write_scenes  # noqa: E402


HERE = Path(__file__).parent
console = Console()


@contextmanager
def phase(title: str, times: dict[str, float]):
    """Prints a headline, and how long what is inside took."""
    console.rule(f"[bold]{len(times) + 1}. {title}")
    start = time.perf_counter()
    yield
    times[title] = time.perf_counter() - start
    console.print(f"[dim]{title}: {times[title]:.0f} s")


def run(*command: str | Path) -> None:
    """Runs Python with these arguments in a process of its own, and shows the command."""
    command = [str(part) for part in command]
    console.print("[dim]$ python " + " ".join(command), soft_wrap=True, highlight=False)
    environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1"}  # TRL would report every run
    subprocess.run([sys.executable, *command], check=True, env=environment)


def draw(folder: Path, num_scenes: int, num_test_scenes: int) -> None:
    """Pictures, captions, conversations and questions, unless they are there."""
    if (folder / "questions.jsonl").exists():
        return
    scenes = write_scenes(folder, num_scenes, seed=0)
    write_pairs(folder, scenes, seed=1)
    write_conversations(folder, scenes, turns=5, seed=2)
    write_questions(folder, write_scenes(folder, num_test_scenes, seed=3, test=True), seed=4)


def score(data: Path, clip: Path, scores: Path, levels: Path) -> None:
    """Scores the pairs and cuts the scores into levels: the data that stage 1 trains on."""
    for folder in (scores, levels):
        shutil.rmtree(folder, ignore_errors=True)
    run(
        *("-m", "aligngpt", "score", data / "pairs.jsonl", "--image_folder", data),
        *("--scorer", clip, "--output_dir", scores, "--batch_size", "256"),
    )
    run("-m", "aligngpt", "levels", scores, "--output_dir", levels)
    rows = load_dataset("parquet", data_files=f"{levels}/*.parquet", split="train").remove_columns("messages")
    qualities = [json.loads(line)["quality"] for line in (data / "pairs.jsonl").read_text().splitlines()]
    show_scores(console, [row | {"quality": qualities[row["row"]]} for row in rows])


def main() -> int:
    """Runs all phases; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--output_dir", type=Path, default=HERE.parent.parent / "demo_output")
    parser.add_argument("--model_card", type=Path, default=None, help="where to write the card as well")
    parser.add_argument("--smoke", action="store_true", help="a few steps on a few pictures; no check of the answers")
    args = parser.parse_args()
    output, times = args.output_dir.resolve(), {}
    names = ("data", "clip", "llama", "scores", "levels", "stage1", "stage2")
    data, clip, llama, scores, levels, stage1, stage2 = (output / name for name in names)
    steps = ("--max_steps", "4") if args.smoke else ()
    start = time.perf_counter()

    with phase("Drawing pictures", times):
        draw(data, *((64, 16) if args.smoke else (6000, 320)))
    with phase("Training a tiny CLIP", times):
        train_clip(data / "pairs.jsonl", clip, IMAGE_SIZE, **({"epochs": 1, "batch_size": 32} if args.smoke else {}))
    with phase("Training a tiny LLaMA", times):
        train_llama(llama, [(example, 4 if args.smoke else 550)], num_texts=2000 if args.smoke else 12_000)
    with phase("Scoring the pairs and cutting the scores into 8 levels", times):
        score(data, clip, scores, levels)
    with phase("Stage 1: pre-training with alignment levels", times):
        run(
            *("-m", "aligngpt", "pretrain", "--config", "pretrain_tiny_cpu", "--output_dir", stage1, *steps),
            *("--vision", clip, "--text", llama),
            *("--data", levels, "--image_folder", data),
        )
    with phase("Stage 2: instruction tuning with the gate", times):
        run(
            *("-m", "aligngpt", "sft", "--config", "sft_tiny_cpu", "--output_dir", stage2, *steps),
            *("--model", stage1, "--data", data / "conversations.jsonl", "--image_folder", data),
        )
    with phase("Loading both in another process and asking about unseen combinations", times):
        run(
            *(HERE / "answer.py", "--stage1", stage1, "--stage2", stage2),
            *("--data", data, "--output", output / "results.json"),
        )

    results = json.loads((output / "results.json").read_text()) | {"times": times}
    console.rule("[bold]Results")
    show_results(console, results)
    card = write_model_card(results, stage2)
    if args.model_card is not None:
        args.model_card.write_text(card, encoding="utf-8")
    console.print(f"Total: {time.perf_counter() - start:.0f} s. The model is in {stage2}.", highlight=False)
    if args.smoke:
        return 0
    failures = check_results(results)
    for failure in failures:
        console.print(f"[bold red]{failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
