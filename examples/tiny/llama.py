"""
Trains a tiny tokenizer and a tiny LLaMA from scratch, on text alone, in about half a minute on two CPU cores.

The folder it saves stands where a user puts `lmsys/vicuna-7b-v1.5`: it holds a SentencePiece `tokenizer.model`, as
Vicuna's does.
"""

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import sentencepiece
import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import trange
from transformers import LlamaConfig, LlamaForCausalLM


BOS, EOS = 1, 2
# Text that is tokenised on its own, and whether the loss is on it; a tuple of words is read all at once, at one
# position, as the sum of their embeddings
Piece = tuple[str | tuple[str, ...], bool]


def chat_pieces(system: str, read: list[Piece], messages: list[dict[str, str]]) -> list[Piece]:
    """A chat about something that was `read`, as the Vicuna template writes it, with the loss on the answers."""
    pieces = [(f"{system} USER: ", False), *read]
    for number, message in enumerate(messages):
        if message["role"] == "user":
            pieces.append((("USER: " if number else "\n") + message["content"] + " ASSISTANT:", False))
        else:
            pieces += [(message["content"], True), ("</s>", True)]
    return pieces


def train_tokenizer(folder: Path, corpus: list[list[Piece]], vocab_size: int) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece BPE model with LLaMA's settings, saved with its tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = (" ".join(text) if isinstance(text, tuple) else text for pieces in corpus for text, _ in pieces)
    texts = (re.sub(r"([.,?])", r" \1", text.strip()) for text in texts if text != "</s>")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts,
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        split_by_unicode_script=False,
        max_sentencepiece_length=32,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
    config |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 1024}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def encode(tokenizer: sentencepiece.SentencePieceProcessor, pieces: list[Piece]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of BOS and the pieces, (L, tokens read at once; -1 for none), and labels (L,)."""
    ids, labels = [[BOS]], [-100]
    for text, is_target in pieces:
        if isinstance(text, tuple):
            piece = [[token for word in text for token in tokenizer.encode(word)]]
        else:
            piece = [[EOS]] if text == "</s>" else [[token] for token in tokenizer.encode(text)]
        ids += piece
        labels += [tokens[0] if is_target else -100 for tokens in piece]
    return pad_sequence([torch.tensor(tokens) for tokens in ids], True, padding_value=-1), torch.tensor(labels)


def batches(examples: list, batch_size: int, rng: random.Random) -> Iterator[dict[str, torch.Tensor]]:
    """Endless batches of texts of similar length. Padded on the right: causal attention needs no mask then."""
    while True:
        pool = sorted(rng.sample(examples, 16 * batch_size), key=lambda pair: len(pair[0]))
        groups = [pool[start : start + batch_size] for start in range(0, len(pool), batch_size)]
        for group in rng.sample(groups, len(groups)):
            ids, labels = zip(*group, strict=True)
            width = max(row.shape[1] for row in ids)
            ids = [pad(row, (0, width - row.shape[1]), value=-1) for row in ids]
            yield {
                "ids": pad_sequence(ids, True, padding_value=-1),
                "labels": pad_sequence(labels, True, padding_value=-100),
            }


def train_llama(
    folder: Path,
    lessons: list[tuple[Callable[[random.Random], list[Piece]], int]],
    batch_size: int = 32,
    num_texts: int = 12000,
    vocab_size: int = 600,
    num_heads: int = 4,
) -> Path:
    """
    Trains on lessons (what writes their texts, and a number of steps), one after the other, and saves model and
    tokenizer to `folder`, or finds them there.
    """
    if (folder / "config.json").exists():
        return folder
    torch.manual_seed(0)
    rng = random.Random(0)
    corpora = [[write_text(rng) for _ in range(num_texts)] for write_text, _ in lessons]
    tokenizer = train_tokenizer(folder, corpora[-1][:2000], vocab_size)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size(),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=num_heads,
        max_position_embeddings=1024,
        initializer_range=0.08,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
    for corpus, (_, steps) in zip(corpora, lessons, strict=True):
        _learn(model, batches([encode(tokenizer, pieces) for pieces in corpus], batch_size, rng), steps)
    model.save_pretrained(folder)
    return folder


def _learn(model: LlamaForCausalLM, data: Iterator[dict[str, torch.Tensor]], steps: int) -> None:
    # Muon for the layers' matrices: it learns to look things up in the notes in half the steps of AdamW
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    others = [*model.model.embed_tokens.parameters(), *model.lm_head.parameters(), *model.model.norm.parameters()]
    others += [parameter for parameter in model.model.layers.parameters() if parameter.ndim != 2]
    optimizers = [torch.optim.Muon(matrices, lr=0.02, weight_decay=0.01)]
    optimizers.append(torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95)))
    schedules = [
        OneCycleLR(optimizer, optimizer.defaults["lr"], total_steps=steps, pct_start=0.1, cycle_momentum=False)
        for optimizer in optimizers
    ]
    for _ in (progress := trange(steps, desc="training LLaMA", leave=False)):
        batch = next(data)
        embeds = model.model.embed_tokens(batch["ids"].clamp(min=0)) * (batch["ids"] >= 0).unsqueeze(-1)
        loss = model(inputs_embeds=embeds.sum(2), labels=batch["labels"]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in (*optimizers, *schedules):
            part.step()
        model.zero_grad()
        progress.set_postfix(loss=f"{loss.item():.3f}")
