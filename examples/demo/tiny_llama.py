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
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import trange
from transformers import LlamaConfig, LlamaForCausalLM


BOS, EOS = 1, 2
Piece = tuple[str, bool]  # text that is tokenised on its own, and whether the loss is on it


def chat_pieces(system: str, read: str, messages: list[dict[str, str]]) -> list[Piece]:
    """A chat about something that was `read`, as the Vicuna template writes it, with the loss on the answers."""
    pieces = [(f"{system} USER: ", False), (read, False)]
    for number, message in enumerate(messages):
        if message["role"] == "user":
            pieces.append((("USER: " if number else "\n") + message["content"] + " ASSISTANT:", False))
        else:
            pieces += [(message["content"], True), ("</s>", True)]
    return pieces


def train_tokenizer(folder: Path, corpus: list[list[Piece]], vocab_size: int) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece BPE model with LLaMA's settings, saved with its tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = (re.sub(r"([.,?])", r" \1", text.strip()) for pieces in corpus for text, _ in pieces if text != "</s>")
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
    """Ids of BOS and the pieces, and labels."""
    ids, labels = [BOS], [-100]
    for text, is_target in pieces:
        piece = [EOS] if text == "</s>" else tokenizer.encode(text)
        ids += piece
        labels += piece if is_target else [-100] * len(piece)
    return torch.tensor(ids), torch.tensor(labels)


def batches(examples: list, batch_size: int, rng: random.Random) -> Iterator[dict[str, torch.Tensor]]:
    """Endless batches of texts of similar length. Padded on the right: causal attention needs no mask then."""
    while True:
        pool = sorted(rng.sample(examples, 16 * batch_size), key=lambda pair: len(pair[0]))
        groups = [pool[start : start + batch_size] for start in range(0, len(pool), batch_size)]
        for group in rng.sample(groups, len(groups)):
            ids, labels = zip(*group, strict=True)
            yield {"input_ids": pad_sequence(ids, True), "labels": pad_sequence(labels, True, padding_value=-100)}


def train_llama(
    folder: Path,
    write_text: Callable[[random.Random], list[Piece]],
    steps: int = 550,
    batch_size: int = 32,
    num_texts: int = 12000,
    vocab_size: int = 600,
) -> Path:
    """Trains on texts by `write_text` and saves model and tokenizer to `folder`, or finds them there."""
    if (folder / "config.json").exists():
        return folder
    torch.manual_seed(0)
    rng = random.Random(0)
    corpus = [write_text(rng) for _ in range(num_texts)]
    tokenizer = train_tokenizer(folder, corpus[:2000], vocab_size)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size(),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.08,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
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
    data = batches([encode(tokenizer, pieces) for pieces in corpus], batch_size, rng)
    for _ in (progress := trange(steps, desc="training LLaMA", leave=False)):
        loss = model(**next(data)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in (*optimizers, *schedules):
            part.step()
        model.zero_grad()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    model.save_pretrained(folder)
    return folder
