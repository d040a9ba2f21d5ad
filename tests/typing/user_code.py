"""What a user's file looks like, with every name that `import aligngpt` gives: mypy checks it in strict mode."""

from pathlib import Path
from typing import Any, assert_type

import torch
from PIL import Image
from transformers import BatchFeature

import aligngpt
from aligngpt import (
    AlignGPTConfig,
    AlignGPTDataCollator,
    AlignGPTForConditionalGeneration,
    AlignGPTModel,
    AlignGPTPreTrainedModel,
    AlignGPTProcessor,
    AlignGPTTrainer,
    AlignmentScorer,
    compose,
    convert,
    cut_into_levels,
    export_llava,
    load_adapter,
    load_training_data,
)


def ask(path: str, image: Image.Image, question: str) -> str:
    model = AlignGPTForConditionalGeneration.from_pretrained(path, dtype="auto", device_map="auto")
    processor = AlignGPTProcessor.from_pretrained(path)
    assert_type(model, AlignGPTForConditionalGeneration)
    assert_type(processor, AlignGPTProcessor)
    chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
    inputs = processor.apply_chat_template(
        chat, alignment_level="best", add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    output = model.generate(**inputs, max_new_tokens=20)
    assert_type(processor.batch_decode(output), list[str])
    return processor.decode(output[0])


def look_inside(model: AlignGPTForConditionalGeneration, processor: AlignGPTProcessor) -> torch.Tensor:
    image = Image.new("RGB", (32, 32))
    inputs = processor(images=[image], text=["<image> what is this?"], return_tensors="pt", padding=True)
    assert_type(inputs, BatchFeature)
    outputs = model(**inputs)
    weights: torch.Tensor = outputs.alignment_weights
    assert_type(model.get_alignment_weights(**inputs), torch.Tensor)
    assert_type(model.config.num_alignment_levels, int)
    base: AlignGPTModel = model.model
    any_model: AlignGPTPreTrainedModel = base
    assert_type(any_model.config.alignment_gate_temperature, float | int)
    return weights + model.get_alignment_weights(**inputs)


def publish(model: AlignGPTForConditionalGeneration, processor: AlignGPTProcessor) -> None:
    model.push_to_hub("you/aligngpt")
    processor.push_to_hub("you/aligngpt")
    model.save_pretrained("folder")
    processor.save_pretrained("folder")


def make() -> None:
    config = AlignGPTConfig(num_alignment_levels=4, alignment_mode="average")
    assert_type(config, AlignGPTConfig)
    model, processor = compose("openai/clip-vit-large-patch14-336", "lmsys/vicuna-7b-v1.5", num_alignment_levels=4)
    assert_type(model, AlignGPTForConditionalGeneration)
    assert_type(processor, AlignGPTProcessor)
    conversion = convert("llava-hf/llava-1.5-7b-hf")
    assert_type(conversion.model, AlignGPTForConditionalGeneration)
    llava, _ = export_llava(model, processor, torch.full((3,), 1 / 3))
    llava.save_pretrained("llava")
    adapted, processor = load_adapter("adapter")
    adapted.merge_and_unload()


def score(images: list[Image.Image], captions: list[str]) -> tuple[list[Any], str]:
    scores = AlignmentScorer("openai/clip-vit-large-patch14-336").score(images, captions)
    levels, cuts = cut_into_levels(scores, num_levels=8)
    cuts.save(Path("alignment_levels.json"))
    return levels.tolist(), aligngpt.__version__


def train(processor: AlignGPTProcessor, model: AlignGPTForConditionalGeneration) -> None:
    dataset = load_training_data("rows.json", on_bad_row="skip")
    collator = AlignGPTDataCollator(processor, image_folder="images")
    trainer = AlignGPTTrainer(model=model, train_dataset=dataset, data_collator=collator, processing_class=processor)
    trainer.train()
