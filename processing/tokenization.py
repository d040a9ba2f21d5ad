"""What a language model's tokenizer needs once, when it becomes an AlignGPT's: exact chunk ids and placeholders."""

import json

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


METASPACE = "\u2581"
SENTENCEPIECE_NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": METASPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": METASPACE},
    ],
}


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase, image_token: str = "<image>", align_token: str = "<align>"
) -> PreTrainedTokenizerFast:
    """
    A copy of `tokenizer` with `image_token` and `align_token` as special tokens (attributes `image_token`,
    `align_token`, and their `_id`), a padding token, and left padding.

    AlignGPT and LLaVA tokenise the text around an image chunk by chunk, each as a string of its own. A SentencePiece
    tokenizer that opens every string with a space is rewritten so that one call does the same: the space is written
    by the normaliser, which runs on each chunk between added tokens, where the original writes it only once. The
    copy is of the generic fast class, whose files hold all of this; `legacy` of LLaMA's class is not saved.

    Raises:
        ValueError: if the tokenizer is not backed by the `tokenizers` library.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} has no fast version, and assistant masks need one.")
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    if _opens_with_space(spec):
        spec["normalizer"], spec["pre_tokenizer"] = SENTENCEPIECE_NORMALIZER, None
    added_tokens = {
        name: AddedToken(token, normalized=False, special=True)
        for name, token in (("image_token", image_token), ("align_token", align_token))
    }
    special_tokens = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    prepared = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)),
        model_max_length=tokenizer.model_max_length,
        padding_side="left",  # for generation; training collators ask for right padding themselves
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        extra_special_tokens=added_tokens,
        **special_tokens,
    )
    if prepared.pad_token is None:
        if prepared.unk_token is not None:
            prepared.pad_token = prepared.unk_token  # as LLaVA-1.5 does
        else:
            prepared.add_special_tokens({"pad_token": AddedToken("<pad>", normalized=False, special=True)})
    return prepared


def _opens_with_space(spec: dict) -> bool:
    """Whether a tokenizer (as `tokenizer.json`) is a SentencePiece one that puts a space before a string."""
    pre_tokenizer, normalizer = spec["pre_tokenizer"] or {}, spec["normalizer"] or {}
    if pre_tokenizer.get("type") == "Metaspace":
        return pre_tokenizer.get("prepend_scheme") != "never"
    return any(
        step.get("type") == "Prepend" and step["prepend"] == METASPACE
        for step in normalizer.get("normalizers", [normalizer])
    )
