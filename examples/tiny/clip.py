"""
Trains a tiny CLIP from scratch on the demo's captioned pairs, good and bad ones alike, in about half a minute on two
CPU cores.

The folder it saves stands where a user puts `openai/clip-vit-large-patch14-336`: `CLIPModel.from_pretrained` and
`AutoProcessor.from_pretrained` load it.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import trange
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast


START, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"


def word_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """One token per word; as CLIP's own tokenizer it pads on the right, and its padding token is its end token."""
    words = sorted({word for text in texts for word in text.replace(",", " , ").replace(".", " . ").split()})
    vocabulary = {word: index for index, word in enumerate([UNKNOWN, *words, START, END])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, vocabulary[START]), (END, vocabulary[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=END, unk_token=UNKNOWN,
        padding_side="right", model_max_length=64,
    )  # fmt: skip


def clip_processor(texts: list[str], image_size: int) -> CLIPProcessor:
    """Image processor for square pictures of `image_size` pixels plus the word tokenizer."""
    size = {"height": image_size, "width": image_size}
    images = CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=size)
    return CLIPProcessor(images, word_tokenizer(texts))


def clip_model(tokenizer: PreTrainedTokenizerFast, image_size: int, width: int = 64, layers: int = 3) -> CLIPModel:
    """A CLIP with patches of 16x16 pixels, one per cell of the grid, and random weights."""
    tower = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
    }
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = CLIPModel(
        CLIPConfig(
            text_config={**tower, **text, **tokens, "num_hidden_layers": 2, "pad_token_id": tokenizer.pad_token_id},
            vision_config={**tower, "image_size": image_size, "patch_size": 16},
            projection_dim=width,
            attn_implementation="eager",  # the fastest for so few and so short sequences
        )
    )
    # The library's std of 0.02 drowns the place of a patch in its pixels, and there is no time here to learn it.
    torch.nn.init.normal_(model.vision_model.embeddings.position_embedding.weight, std=0.5)
    return model


def load_pixels(paths: list[Path], processor: CLIPProcessor) -> torch.Tensor:
    """What the image processor gives for pictures of its size, for all of them at once: (n, 3, height, width)."""
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    mean, std = (
        np.array(value, dtype=np.float32)
        for value in (processor.image_processor.image_mean, processor.image_processor.image_std)
    )
    return torch.from_numpy((pixels.astype(np.float32) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def train_clip(
    pairs: Path,
    folder: Path,
    image_size: int,
    epochs: int = 10,
    batch_size: int = 256,
    learning_rate: float = 1.5e-3,
    width: int = 64,
    layers: int = 3,
) -> Path:
    """Contrastive training on a file of `write_pairs`; saves model and processor to `folder`, or finds them there."""
    if (folder / "config.json").exists():
        return folder
    torch.manual_seed(0)
    records = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    texts = [record["caption"] for record in records]
    processor = clip_processor(texts, image_size)
    pixels = load_pixels([pairs.parent / record["image"] for record in records], processor)
    tokens = processor.tokenizer(texts, padding=True, return_tensors="pt")
    model = clip_model(processor.tokenizer, image_size, width, layers)
    steps = epochs * (len(records) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    for step in (progress := trange(steps, desc="training CLIP", leave=False)):
        if step % (len(records) // batch_size) == 0:
            order = torch.randperm(len(records)).split(batch_size)
        rows = order[step % (len(records) // batch_size)]
        batch = {"input_ids": tokens.input_ids[rows], "attention_mask": tokens.attention_mask[rows]}
        loss = model(**batch, pixel_values=pixels[rows], return_loss=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        progress.set_postfix(loss=f"{loss.item():.3f}")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
