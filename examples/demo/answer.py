"""
Loads the demo's models as a user would, through the Auto classes, and lets them work on pictures they have not seen:
stage 1 captions them at every level, stage 2 answers questions, and so does the LLaVA. Writes what came out as JSON.

    python examples/demo/answer.py --stage1 DIR --stage2 DIR --llava DIR --data DIR --output results.json
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

import torch
import transformers


sys.path.append(str(Path(__file__).parents[1]))  # for tiny/, which the demo shares with the miniature experiment

from texts import facts, true_facts, type_of  # noqa: E402
from tiny.generation import generate, load  # noqa: E402
from write_data import scene_of  # noqa: E402


def caption_at_every_level(folder: Path, images: list[Path], scenes: list) -> dict:
    """Captions of stage 1 per level, how many facts they state, and how many of these are true."""
    model, processor = load(folder)
    captions = {}
    for level in range(model.config.num_alignment_levels):
        options = {"chat_template": "plain", "alignment_level": level}
        texts, _ = generate(model, processor, images, [""] * len(images), f"captions at level {level}", **options)
        pairs = zip(texts, scenes, strict=True)
        captions[level] = [
            {"text": text, "stated": len(facts(text)), "true": len(facts(text) & true_facts(scene))}
            for text, scene in pairs
        ]
    return captions


def answer_by_chance(conversations: Path) -> dict[str, str]:
    """For each type of question the best answer of somebody who never looks: the most frequent one in training."""
    answers = defaultdict(Counter)
    for line in conversations.read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"][1:]
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            answers[type_of(question["content"])][answer["content"]] += 1
    return {kind: counts.most_common(1)[0][0] for kind, counts in answers.items()}


def main() -> None:
    """Captions and answers to a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n\n")[0])
    for name in ("stage1", "stage2", "llava", "data", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    transformers.logging.disable_progress_bar()
    records = [json.loads(line) for line in (args.data / "questions.jsonl").read_text().splitlines()]
    pictures = {record["image"]: scene_of(record) for record in records}
    captions = caption_at_every_level(args.stage1, [args.data / name for name in pictures], list(pictures.values()))

    images, questions = [args.data / record["image"] for record in records], [record["question"] for record in records]
    answers, weights = generate(*load(args.stage2), images, questions, "AlignGPT answers")
    llava_answers, _ = generate(*load(args.llava), images, questions, "LLaVA answers")
    chance = answer_by_chance(args.data / "conversations.jsonl")
    by_type = defaultdict(list)
    for record, given, llava, row in zip(records, answers, llava_answers, weights.tolist(), strict=True):
        by_type[record["type"]].append({**record, "given": given, "llava": llava, "weights": row})

    def accuracy(rows: list[dict], answer) -> float:
        return sum(answer(row) == row["answer"] for row in rows) / len(rows)

    results = {
        "pictures": list(pictures),
        "captions": captions,
        "questions": {
            kind: {
                "count": len(rows),
                "accuracy": accuracy(rows, lambda row: row["given"]),
                "llava": accuracy(rows, lambda row: row["llava"]),
                "chance": accuracy(rows, lambda row: chance.get(row["type"])),
                "weights": torch.tensor([row["weights"] for row in rows]).mean(0).tolist(),
                "rows": [{key: row[key] for key in ("image", "question", "answer", "given", "llava")} for row in rows],
            }
            for kind, rows in by_type.items()
        },
    }
    args.output.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
