"""
What is measured of a model. Models are loaded as a user loads them, through the Auto classes.
"""

import math
from collections import Counter, defaultdict
from pathlib import Path

import torch
from data import read_jsonl, scene_of
from language import f1, facts, is_true
from tiny.clip import load_pixels
from tiny.generation import generate, load
from transformers import AutoProcessor, CLIPModel

from aligngpt.training.collator import AlignGPTDataCollator
from aligngpt.training.data import load_training_data


def control_levels(folder: Path, scorer: Path, data: Path, split: str, num_images: int) -> list[dict[str, float]]:
    """
    Stage 1 captions pictures at every level, a LLaVA once. For each level the mean similarity by the scoring CLIP, the
    precision of all stated facts together, the mean F1 and the number of facts per caption, and four captions.
    """
    model, processor = load(folder)
    levels = range(model.config.num_alignment_levels) if processor.add_align_token else [None]
    pictures = {record["image"]: scene_of(record) for record in read_jsonl(data / f"{split}.jsonl")}
    pictures = dict(list(pictures.items())[:num_images])
    images, scenes = [data / name for name in pictures], list(pictures.values())
    newline = processor.tokenizer("a\n", add_special_tokens=False).input_ids[-1]
    rows = []
    for level in levels:
        options = {"chat_template": "plain", "alignment_level": level, "eos_token_id": newline}
        texts, _ = generate(model, processor, images, [""] * len(images), f"level {level}", **options)
        stated = [(fact, scene) for text, scene in zip(texts, scenes, strict=True) for fact in facts(text)]
        rows.append(
            {
                "similarity": similarity(scorer, images, texts).mean().item(),
                "precision": sum(is_true(*pair) for pair in stated) / len(stated) if stated else 0.0,
                "f1": sum(map(f1, texts, scenes)) / len(texts),
                "facts": len(stated) / len(texts),
                "captions": texts[:4],
            }
        )
    return rows


@torch.inference_mode()
def similarity(scorer: Path, images: list[Path], texts: list[str]) -> torch.Tensor:
    """Cosine similarities by a CLIP, (n,)."""
    model, processor = CLIPModel.from_pretrained(scorer).eval(), AutoProcessor.from_pretrained(scorer)
    tokens = processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    outputs = model(
        input_ids=tokens.input_ids,
        attention_mask=tokens.attention_mask,
        pixel_values=load_pixels(images, processor),
    )
    return (outputs.image_embeds * outputs.text_embeds).sum(-1)


def answer_questions(
    folder: Path, data: Path, split: str, num_images: int | None = None, level: int | None = None
) -> dict[str, dict]:
    """
    Per task: the score (F1 of the facts for "describe", exact answers otherwise), how many questions, the share of the
    most frequent answer, the gate's mean weights and their spread over the questions, and two answers.
    """
    model, processor = load(folder)
    records = read_jsonl(data / f"{split}.jsonl")
    if num_images is not None:
        images = list(dict.fromkeys(record["image"] for record in records))[:num_images]
        records = [record for record in records if record["image"] in images]
    records.sort(key=lambda record: record["task"] == "describe")  # batches of long answers, batches of short ones
    answers, weights = generate(
        model,
        processor,
        [data / record["image"] for record in records],
        [record["question"] for record in records],
        "questions",
        alignment_level=level,
    )
    by_task = defaultdict(list)
    for record, given, row in zip(records, answers, weights, strict=True):
        score = f1(given, scene_of(record)) if record["task"] == "describe" else float(given == record["answer"])
        example = {"question": record["question"], "answer": record["answer"], "given": given}
        by_task[record["task"]].append((score, row, example))
    return {
        task: {
            "score": sum(score for score, _, _ in rows) / len(rows),
            "count": len(rows),
            "majority": max(Counter(example["answer"] for _, _, example in rows).values()) / len(rows),
            "weights": torch.stack([row for _, row, _ in rows]).mean(0).tolist(),
            "weights_spread": torch.stack([row for _, row, _ in rows]).std(0).tolist(),
            "examples": [example for _, _, example in rows[:2]],
        }
        for task, rows in by_task.items()
    }


def measure_gate(folder: Path, data: Path, num_rows: int = 256, **config_fields) -> dict[str, float]:
    """
    Why a gate adapts, or does not, on validation questions with their answers:

    - `input_between_tasks`, `input_within_tasks`: the spread (standard deviation, averaged over its T inputs) of what
      the gate's MLP is given, between the means of the tasks and within a task;
    - `gradient_*`: root mean square of the loss's gradient for the weights of gate, projector and language model;
    - `gradient_agreement`: the cosine of the gate's gradients on the questions about two halves of the pictures: 1 if
      they pull the same way, 0 if they are noise;
    - `local_spread`: how far the local embeddings lie apart (root mean square distance from their mean), in parts of
      the global embedding's length;
    - `loss_reading_prompt`, `loss_reading_all`: the loss with a gate that reads the prompt, and with one that reads
      the answer too. Where the second is lower, the answer leaks through the gate.
    """
    model, processor = load(folder, **config_fields)
    model.requires_grad_(True)
    rows = load_training_data(str(data / "validation_chats.jsonl")).select(range(num_rows))
    collator = AlignGPTDataCollator(processor=processor, chat_template="default", image_folder=str(data))
    by_half = [[row for row in rows if int(row["id"].split("-")[1]) % 2 == half] for half in (0, 1)]
    halves = [collator(half) for half in by_half]
    gate, modules = model.model.alignment_gate, {}
    modules["gate"], modules["projector"] = gate, model.model.multi_modal_projector
    modules["language_model"] = model.model.language_model

    inputs, gradients = [], []
    first_layer = gate.text_linear if gate.input == "text" else gate.linear_1
    handle = first_layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    for half in halves:
        half = {name: value for name, value in half.items() if isinstance(value, torch.Tensor)}
        model.zero_grad()
        model(**half).loss.backward()
        gradients.append({name: _flatten_gradients(module) for name, module in modules.items()})
    handle.remove()
    tasks = [row["id"].rpartition("-")[2] for half in by_half for row in half]
    between, within = spread_by_group(torch.cat(inputs), tasks)

    losses = {}
    for text in ("prompt", "all"):
        model.config.alignment_gate_text = text
        with torch.inference_mode():
            halves_loss = [
                model(**{k: v for k, v in half.items() if isinstance(v, torch.Tensor)}).loss for half in halves
            ]
        losses[f"loss_reading_{text}"] = torch.stack(halves_loss).mean().item()

    table = model.model.alignment_embeddings.weight.detach()
    local = table[:-1] - table[:-1].mean(0)
    rms = {name: (gradients[0][name] + gradients[1][name]).div(2).square().mean().sqrt().item() for name in modules}
    return {
        "input_between_tasks": between,
        "input_within_tasks": within,
        **{f"gradient_{name}": value for name, value in rms.items()},
        "gradient_agreement": torch.cosine_similarity(gradients[0]["gate"], gradients[1]["gate"], dim=0).item(),
        "local_spread": (local.square().sum(-1).mean().sqrt() / table[-1].norm()).item(),
        **losses,
    }


def _flatten_gradients(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def spread_by_group(values: torch.Tensor, groups: list[str]) -> tuple[float, float]:
    """
    Standard deviation between groups, and that of values around their group's mean, for values (n, k); both the root
    of the variance's mean over k. From the first the part is taken that the means of groups differ by chance.
    """
    by_group = [values[[i for i, g in enumerate(groups) if g == group]] for group in sorted(set(groups))]
    variances = torch.stack([rows.var(0) for rows in by_group])
    chance = torch.stack([row / len(rows) for row, rows in zip(variances, by_group, strict=True)]).mean()
    between = torch.stack([rows.mean(0) for rows in by_group]).var(0).mean() - chance
    return math.sqrt(max(between, 0)), math.sqrt(variances.mean())
