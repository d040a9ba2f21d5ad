"""
Loads the demo's two models as a user would, through the Auto classes, and lets them work on pictures they have not
seen: stage 1 captions them at every level, stage 2 answers questions. Writes what came out as JSON.

    python examples/demo/answer.py --stage1 DIR --stage2 DIR --data DIR --output results.json
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import torch


sys.path.append(str(Path(__file__).parents[1]))  # for tiny/, which the demo shares with the miniature experiment

from texts import facts, true_facts  # noqa: E402
from tiny.generation import generate, load  # noqa: E402
from write_data import scene_of  # noqa: E402


def caption_at_every_level(folder: Path, images: list[Path], scenes: list) -> dict:
    """Captions of stage 1 per level, and the precision of the facts that they state together."""
    model, processor = load(folder)
    newline = processor.tokenizer("a\n", add_special_tokens=False).input_ids[-1]
    captions, precisions = {}, {}
    for level in range(model.config.num_alignment_levels):
        options = {"chat_template": "plain", "alignment_level": level, "eos_token_id": newline}
        texts, _ = generate(model, processor, images, [""] * len(images), f"captions at level {level}", **options)
        true = stated = 0
        for text, scene in zip(texts, scenes, strict=True):
            stated += len(facts(text))
            true += len(facts(text) & true_facts(scene))
        captions[level], precisions[level] = texts, true / stated if stated else None
    return {"captions": captions, "precision": precisions}


def main() -> None:
    """Captions and answers to a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n\n")[0])
    for name in ("stage1", "stage2", "data", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    records = [json.loads(line) for line in (args.data / "questions.jsonl").read_text().splitlines()]

    pictures = {record["image"]: scene_of(record) for record in records}
    results = caption_at_every_level(args.stage1, [args.data / name for name in pictures], list(pictures.values()))

    model, processor = load(args.stage2)
    images, questions = [args.data / record["image"] for record in records], [record["question"] for record in records]
    answers, weights = generate(model, processor, images, questions, "questions")
    by_type = defaultdict(list)
    for record, answer, row in zip(records, answers, weights.tolist(), strict=True):
        by_type[record["type"]].append(
            {**record, "given": answer, "correct": answer == record["answer"], "weights": row}
        )
    results["questions"] = {
        kind: {
            "count": len(rows),
            "accuracy": sum(row["correct"] for row in rows) / len(rows),
            "weights": torch.tensor([row["weights"] for row in rows]).mean(0).tolist(),
            "examples": [{key: row[key] for key in ("image", "question", "answer", "given")} for row in rows[:4]],
        }
        for kind, rows in by_type.items()
    }
    results["images"] = list(pictures)
    args.output.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
