"""Loads a tiny model as a user would, through the Auto classes, and lets it answer in batches."""

from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

import aligngpt  # noqa: F401  registers with the Auto classes

from .records import SYSTEM


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
