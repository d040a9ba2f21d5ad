"""
AlignGPT from nothing to answers, in about seven minutes on two CPU cores: draws captioned pictures, makes a tiny CLIP
and a tiny LLaMA (where you would download them), scores how well each caption fits its picture, trains both AlignGPT
stages, and asks about pictures with combinations of colour, shape and place that no training picture had.

    make demo                                     (or: python examples/demo/demo.py)
    python examples/demo/demo.py --output_dir X   somewhere else than demo_output

Every step is the real thing: the scripts and settings are those that train the 7B model. The same scripts train a
LLaVA on the same data, for comparison. Pictures, CLIP and LLaMA are kept in the output folder and used again. Exits
with 1 if the answers are worse than they should be.
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

import transformers
from datasets import disable_progress_bars, load_dataset
from rich.console import Console

from aligngpt import compose


sys.path.append(str(Path(__file__).parents[1]))  # for tiny/, which the demo shares with the miniature experiment

from reading import example  # noqa: E402
from report import (  # noqa: E402
    check_results,
    show_results,
    show_scores,
    write_model_card,
    write_page,
    write_picture,
)
from scenes import IMAGE_SIZE  # noqa: E402
from tiny.clip import train_clip  # noqa: E402
from tiny.llama import train_llama  # noqa: E402
from write_data import write_conversations, write_pairs, write_questions, write_scenes  # noqa: E402


HERE = Path(__file__).parent
LLAMA_STEPS = 550
QUIET = ("--logging_steps", "250")
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
    environment = {
        **os.environ,
        "HF_HUB_DISABLE_TELEMETRY": "1",  # TRL would report every run
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # of loading and saving; training keeps its own
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
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


def train(start: tuple, stage1: Path, stage2: Path, levels: Path, data: Path, steps: tuple, times: dict, name: str):
    """Both stages, from `start`: arguments that name the model, or the parts, that stage 1 starts from."""
    with phase(f"{name}, stage 1: captions and their levels", times):
        run(
            *("-m", "aligngpt", "pretrain", "--config", "pretrain_tiny_cpu", "--output_dir", stage1, *QUIET, *steps),
            *(*start, "--data", levels, "--image_folder", data),
        )
    with phase(f"{name}, stage 2: questions and answers", times):
        run(
            *("-m", "aligngpt", "sft", "--config", "sft_tiny_cpu", "--output_dir", stage2, *QUIET, *steps),
            *("--model", stage1, "--data", data / "conversations.jsonl", "--image_folder", data),
        )


def compose_llava(clip: Path, llama: Path, folder: Path) -> None:
    """The same parts, and a processor that writes no `<align>`: what is trained from here is a LLaVA."""
    model, processor = compose(str(clip), str(llama))
    processor.add_align_token = False
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def main() -> int:
    """Runs all phases; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--output_dir", type=Path, default=HERE.parent.parent / "demo_output")
    parser.add_argument("--model_card", type=Path, default=None, help="where to write the card as well")
    parser.add_argument("--smoke", action="store_true", help="a few steps on a few pictures; no check of the answers")
    args = parser.parse_args()
    output, times = args.output_dir.resolve(), {}
    names = ("data", "clip", "llama", "scores", "levels", "stage1", "stage2", "llava")
    data, clip, llama, scores, levels, stage1, stage2, llava = (output / name for name in names)
    steps = ("--max_steps", "4") if args.smoke else ()
    start = time.perf_counter()
    transformers.logging.disable_progress_bar()
    disable_progress_bars()
    for folder in (stage1, stage2, llava):  # of an earlier run
        shutil.rmtree(folder, ignore_errors=True)

    with phase("Drawing pictures and writing captions", times):
        draw(data, *((64, 16) if args.smoke else (6000, 320)))
    with phase("A tiny CLIP and a tiny LLaMA, where you would download them", times):
        train_clip(data / "pairs.jsonl", clip, IMAGE_SIZE, **({"epochs": 1, "batch_size": 32} if args.smoke else {}))
        train_llama(llama, [(example, 4 if args.smoke else LLAMA_STEPS)], num_texts=2000 if args.smoke else 12_000)
    with phase("Scoring the pairs and cutting the scores into 8 levels", times):
        score(data, clip, scores, levels)
    train(("--vision", clip, "--text", llama), stage1, stage2, levels, data, steps, times, "AlignGPT")
    compose_llava(clip, llama, llava / "start")
    train(("--model", llava / "start"), llava / "stage1", llava / "stage2", levels, data, steps, times, "LLaVA")
    with phase("Loading them in another process and asking about unseen combinations", times):
        run(
            *(HERE / "answer.py", "--stage1", stage1, "--stage2", stage2, "--llava", llava / "stage2"),
            *("--data", data, "--output", output / "results.json"),
        )

    results = json.loads((output / "results.json").read_text()) | {"times": times}
    console.rule("[bold]Results")
    show_results(console, results)
    write_page(results, data, output / "report.html")
    write_picture(results, data, output / "report.png")
    shutil.copy(data / results["pictures"][0], stage2 / "example.png")
    card = write_model_card(results, stage2)
    if args.model_card is not None:
        args.model_card.write_text(card, encoding="utf-8")
    console.print(f"Total: {time.perf_counter() - start:.0f} s. The model is in {stage2}.", highlight=False)
    console.print(f"See what it says:  {output / 'report.html'}", highlight=False, soft_wrap=True)
    ask = [sys.executable, HERE / "ask.py", "--model", stage2, "'what colour is top-left?'"]
    console.print("Ask it yourself:   " + " ".join(map(str, ask)), highlight=False, soft_wrap=True)
    failures = [] if args.smoke else check_results(results)
    for failure in failures:
        console.print(f"[bold red]{failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
