"""Tiny dual encoders with random weights: a CLIP, a SigLIP, and a SigLIP 2 that takes images of any shape (NaFlex)."""

import io

import pytest
import sentencepiece
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipTokenizer,
)


CAPTIONS = ["a red circle on a blue field", "two birds on a wire", "the quick brown fox jumps over the lazy dog"]
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
# Wide enough weights that every pixel and token shows in the score
WIDE = {"initializer_factor": 5.0}


def fast_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE between a start and an end token, as CLIP's; pads with its end token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A {special[1]}", special_tokens=[(special[0], 0), (special[1], 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special[0],
        eos_token=special[1],
        pad_token=special[1],
        padding_side="left",  # the scorer has to know better
        model_max_length=max_length,
    )


@pytest.fixture(scope="session")
def clip_scorer(tmp_path_factory):
    """A CLIP of 24x24 pixels and at most 16 tokens."""
    folder, tokenizer = tmp_path_factory.mktemp("clip_scorer"), fast_tokenizer(16)
    torch.manual_seed(0)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": 1, "bos_token_id": 0}
    config = CLIPConfig(
        text_config={**TOWER, **WIDE, **text, "pad_token_id": 1},
        vision_config={**TOWER, **WIDE, "image_size": 24, "patch_size": 8},
        projection_dim=16,
        **WIDE,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    crop = {"height": 24, "width": 24}
    CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=crop).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def siglip_scorer(tmp_path_factory):
    """A SigLIP of 24x24 pixels and 16 tokens, with its own SentencePiece tokenizer."""
    folder = tmp_path_factory.mktemp("siglip_scorer")
    with io.BytesIO() as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CAPTIONS * 20), model_writer=model, vocab_size=36, pad_id=0, eos_id=1, unk_id=2,
            bos_id=-1, minloglevel=2,
        )  # fmt: skip
        (folder / "spiece.model").write_bytes(model.getvalue())
    tokenizer = SiglipTokenizer(str(folder / "spiece.model"), model_max_length=16)
    torch.manual_seed(1)
    config = SiglipConfig(
        text_config={**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32},
        vision_config={**TOWER, "image_size": 24, "patch_size": 8},
    )
    SiglipModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 24, "width": 24}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def siglip2_scorer(tmp_path_factory):
    """A SigLIP 2 of at most 12 patches of 8x8 pixels, in the image's own shape, and 16 tokens."""
    folder = tmp_path_factory.mktemp("siglip2_scorer")
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Siglip2Tokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, model_max_length=16)
    torch.manual_seed(2)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32}
    config = Siglip2Config(text_config={**TOWER, **text}, vision_config={**TOWER, "patch_size": 8, "num_patches": 16})
    Siglip2Model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Siglip2ImageProcessorPil(
        patch_size=8, max_num_patches=12, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]
    ).save_pretrained(folder)
    return folder
