"""Ids around placeholders, against the sentencepiece library."""

import pytest
import sentencepiece
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from aligngpt.processing.tokenization import prepare_tokenizer


PROMPTS = [
    "<image>\nWhat is this?",
    "What is <image> this?",
    "What is <image>?",
    "<image>",
    "<image><image>\nthe same?",
    "<image>\n<image>\n two birds",
    "<image>\n\nA line after an empty one",
    "before\n<image>after",
    " a piece that starts with a space",
    "<image> a piece that starts with a space",
    "<image>  and with two ",
    "A caf\u00e9 in Z\u00fcrich: \u732b\U0001f600 <image> \u00e9",
    "USER: <image>\nWhat? ASSISTANT: A cat.</s>USER: Where? ASSISTANT: On a mat.</s>",
    "USER: hi ASSISTANT: 12, 345.</s>",
    "<align>A chat. USER: <image>\nWhat colour is the bus? ASSISTANT:",
    "<align><image>a cat on a mat\n",
    "tabs\tand  double  spaces <image>\ttab",
    "The end of </s>",
    "",
]


@pytest.fixture(scope="module")
def tokenizer(text_folder):
    return prepare_tokenizer(AutoTokenizer.from_pretrained(text_folder))


def expected_ids(text_folder, tokenizer, prompt):
    """BOS, then each chunk between special tokens encoded by itself, as the authors' code does."""
    library = sentencepiece.SentencePieceProcessor(str(text_folder / "tokenizer.model"))
    special = {
        "<image>": tokenizer.image_token_id,
        "<align>": tokenizer.align_token_id,
        "</s>": library.eos_id(),
    }
    ids, chunk = [library.bos_id()], ""
    while prompt:
        token = next((token for token in special if prompt.startswith(token)), None)
        if token is None:
            chunk, prompt = chunk + prompt[0], prompt[1:]
            continue
        ids += library.encode(chunk) + [special[token]]
        chunk, prompt = "", prompt[len(token) :]
    return ids + library.encode(chunk)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_ids_are_sentencepieces_chunk_by_chunk(tokenizer, text_folder, prompt):
    assert tokenizer(prompt).input_ids == expected_ids(text_folder, tokenizer, prompt)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_ids_stay_the_same_after_saving_and_loading(tokenizer, text_folder, prompt, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(prompt).input_ids == expected_ids(text_folder, tokenizer, prompt)
    assert (loaded.image_token, loaded.align_token, loaded.padding_side) == ("<image>", "<align>", "left")
    assert (loaded.image_token_id, loaded.align_token_id) == (tokenizer.image_token_id, tokenizer.align_token_id)


@pytest.mark.parametrize("prompt", ["What is this?", "A cat on a mat. 12, 345.", "two  spaces"])
def test_text_without_placeholders_has_the_ids_of_the_original(tokenizer, text_folder, prompt):
    original = AutoTokenizer.from_pretrained(text_folder)
    assert tokenizer(prompt).input_ids == original(prompt).input_ids
    assert tokenizer.decode(tokenizer(prompt).input_ids, skip_special_tokens=True) == prompt


def test_a_byte_level_tokenizer_keeps_its_rules(tmp_path):
    from tokenizers import ByteLevelBPETokenizer

    library = ByteLevelBPETokenizer()
    library.train_from_iterator(["what is this? a cat on a mat"] * 9, vocab_size=300)
    original = PreTrainedTokenizerFast(tokenizer_object=library._tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    prepared = prepare_tokenizer(original)
    assert prepared(" a cat\n").input_ids == original(" a cat\n").input_ids
    assert prepared("<image>\na").input_ids == [prepared.image_token_id, *original("\na").input_ids]
    assert prepared.pad_token == "<|end|>"


def test_a_tokenizer_without_padding_and_unknown_token_gets_a_padding_token():
    from tokenizers import ByteLevelBPETokenizer

    library = ByteLevelBPETokenizer()
    library.train_from_iterator(["a cat"], vocab_size=260)
    prepared = prepare_tokenizer(PreTrainedTokenizerFast(tokenizer_object=library._tokenizer, eos_token="<|end|>"))
    assert prepared.pad_token == "<pad>" and prepared.pad_token_id != prepared.eos_token_id
