"""
Loads the demo's two models as a user would, through the Auto classes, and lets them work on pictures they have not
seen: stage 1 captions them at every level, stage 2 answers questions. Writes what came out as JSON.
Over the 100 lines of an example: captions and questions share one batched generation.

    python examples/demo/answer.py --stage1 DIR --stage2 DIR --data DIR --output results.json
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch
from texts import facts, true_facts
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor
from write_data import SYSTEM, scene_of

import aligngpt  # noqa: F401  registers with the Auto classes


BATCH_SIZE = 100


def load(folder: Path, **config_fields) -> tuple:
    """Model and processor of a folder, with `config_fields` instead of those of its configuration."""
    model = AutoModelForImageTextToText.from_pretrained(folder, **config_fields)
    return model.eval(), AutoProcessor.from_pretrained(folder)


@torch.inference_mode()
def generate(model, processor, images: list[Path], questions: list[str], title: str, **options) -> tuple:
    """Greedy answers, and the gate's weights (rows, N-1), for a picture and a question each."""
    answers, weights = [], []
    template = options.pop("chat_template", None)
    level = options.pop("alignment_level", None)
    for start in tqdm(range(0, len(images), BATCH_SIZE), desc=title, leave=False):
        rows = slice(start, start + BATCH_SIZE)
        chats = [
            [
                {"role": "system", "content": SYSTEM},
                {
                    "role": "user",
                    "content": [{"type": "image", "path": str(image)}, {"type": "text", "text": question}],
                },
            ]
            for image, question in zip(images[rows], questions[rows], strict=True)
        ]
        inputs = processor.apply_chat_template(
            chats,
            chat_template=template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        if level is not None:
            inputs["alignment_levels"] = torch.full((len(chats),), level)
        weights.append(model.get_alignment_weights(**inputs))
        generated = model.generate(**inputs, max_new_tokens=60, do_sample=False, **options)
        answers += processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [answer.strip() for answer in answers], torch.cat(weights)


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
