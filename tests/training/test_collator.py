"""Rows to batches: labels, levels, images, and rows that cannot be trained on."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from aligngpt.training.collator import AlignGPTDataCollator


def row(*turns, images=(), **columns):
    """A row whose turns are (role, text) or (role, text, number of images)."""
    messages = [
        {"role": role, "content": [{"type": "image"}] * sum(numbers) + [{"type": "text", "text": text}]}
        for role, text, *numbers in turns
    ]
    return {"id": "r", "images": list(images), "messages": messages, "alignment_level": -1, **columns}


SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. "
)
PICTURE = Image.new("RGB", (16, 16), "red")
U, A, S = "user", "assistant", "system"

# Ten rows, and what is trained on written out by hand: the text in double brackets, of the text as the model sees it
# (<image> once an image). The paper: answers and </s>, in stage 2
CONVERSATIONS = [
    (row((U, "Blue?"), (A, "Yes.")), SYSTEM + "USER: Blue? ASSISTANT:[[ Yes.</s>]]"),
    (
        row((U, "Blue?"), (A, "Yes."), (U, "Red?"), (A, "No.")),
        SYSTEM + "USER: Blue? ASSISTANT:[[ Yes.</s>]]USER: Red? ASSISTANT:[[ No.</s>]]",
    ),
    (
        row((U, "What is it?", 1), (A, "a cat"), images=[PICTURE]),
        SYSTEM + "USER: <image>\nWhat is it? ASSISTANT:[[ a cat</s>]]",
    ),
    (
        row((U, "Same?", 2), (A, "No."), images=[PICTURE, PICTURE]),
        SYSTEM + "USER: <image>\n<image>\nSame? ASSISTANT:[[ No.</s>]]",
    ),
    (
        row((U, "Hi"), (A, "Hello"), (U, "And?", 1), (A, "a cat"), images=[PICTURE]),
        SYSTEM + "USER: Hi ASSISTANT:[[ Hello</s>]]USER: <image>\nAnd? ASSISTANT:[[ a cat</s>]]",
    ),
    (row((S, "Be short."), (U, "Blue?"), (A, "Yes.")), "Be short. USER: Blue? ASSISTANT:[[ Yes.</s>]]"),
    (
        row((U, "One?"), (A, "1"), (U, "Two?"), (A, "2"), (U, "Three?"), (A, "3")),
        SYSTEM + "USER: One? ASSISTANT:[[ 1</s>]]USER: Two? ASSISTANT:[[ 2</s>]]USER: Three? ASSISTANT:[[ 3</s>]]",
    ),
    # What users write is never trained on, even if it looks like an answer, a question stays unanswered
    (row((U, "ASSISTANT: No."), (A, "Yes.")), SYSTEM + "USER: ASSISTANT: No. ASSISTANT:[[ Yes.</s>]]"),
    (row((U, "Blue?"), (A, "Yes."), (U, "Red?")), SYSTEM + "USER: Blue? ASSISTANT:[[ Yes.</s>]]USER: Red? "),
    (row((U, "Say it twice"), (A, "red\nred")), SYSTEM + "USER: Say it twice ASSISTANT:[[ red\nred</s>]]"),
]


@pytest.mark.parametrize(("conversation", "expected"), CONVERSATIONS, ids=range(10))
def test_stage_2_trains_the_answers_with_their_end_tokens(processor, conversation, expected):
    batch = AlignGPTDataCollator(processor)([conversation])
    tokenizer = processor.tokenizer
    expected = expected.replace("<image>", "<image>" * 16)
    text = expected.replace("[[", "").replace("]]", "")
    align = "<align>" if "<image>" in text else ""
    encoded = tokenizer(f"<s>{align}{text}", add_special_tokens=False, return_offsets_mapping=True)
    # Where the brackets are, in the text without them
    spans, position = [], len(f"<s>{align}")
    for index, part in enumerate(expected.replace("]]", "[[").split("[[")):
        spans += [(position, position + len(part))] * (index % 2)
        position += len(part)
    labels = [
        token if any(start < end_of_token <= end for start, end in spans) else -100
        for token, (_, end_of_token) in zip(encoded.input_ids, encoded.offset_mapping, strict=True)
    ]
    assert batch["input_ids"][0].tolist() == encoded.input_ids
    assert batch["labels"][0].tolist() == labels
    assert tokenizer.eos_token_id in labels, "the model has to learn to stop"


def test_a_batch_has_the_rows_of_singles_and_padding(processor):
    rows = [conversation for conversation, _ in CONVERSATIONS]
    batch = AlignGPTDataCollator(processor)(rows)
    assert len(batch["pixel_values"]) == 4
    for index, single in enumerate(rows):
        alone = AlignGPTDataCollator(processor)([single])
        length = alone["input_ids"].shape[1]
        for name in ("input_ids", "labels", "token_type_ids"):
            assert batch[name][index, :length].tolist() == alone[name][0].tolist()
        assert (batch["labels"][index, length:] == -100).all() and not batch["attention_mask"][index, length:].any()


def test_stage_1_trains_the_caption_and_a_newline(processor):
    collator = AlignGPTDataCollator(processor, chat_template="plain", num_alignment_levels=8)
    batch = collator([row((U, "Describe it.", 1), (A, "a cat"), images=[PICTURE], alignment_level=3)])
    tokens = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    caption = processor.tokenizer.tokenize("a cat\n")
    assert tokens == ["<s>", "<align>", *["<image>"] * 16, *caption]
    assert batch["labels"][0].tolist() == [-100] * 18 + processor.tokenizer.convert_tokens_to_ids(caption)
    assert batch["alignment_levels"].tolist() == [3]
    assert not batch["token_type_ids"].any(), "the gate must not read the caption"


@pytest.mark.parametrize(("level", "told"), [(-1, "none"), (8, "8"), (None, "none")])
def test_a_missing_level_or_one_out_of_range_names_the_row_in_stage_1(processor, level, told):
    collator = AlignGPTDataCollator(processor, chat_template="plain", num_alignment_levels=8)
    with pytest.raises(ValueError, match=rf"Row a has alignment level {told}; stage 1 needs 0\.\.7"):
        collator([row((U, "", 1), (A, "a cat"), images=[PICTURE], alignment_level=level, id="a")])


def test_stage_2_leaves_the_level_to_the_gate(processor):
    batch = AlignGPTDataCollator(processor)([row((U, "", 1), (A, "a cat"), images=[PICTURE], alignment_level=3)])
    assert "alignment_levels" not in batch


def test_rows_of_trl_s_form_are_taken_as_they_are(processor):
    ours = AlignGPTDataCollator(processor)([CONVERSATIONS[2][0]])
    plain = {"images": [PICTURE], "messages": [{"role": U, "content": "What is it?"}, {"role": A, "content": "a cat"}]}
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    for messages in (plain["messages"], [{"role": U, "content": parts}, plain["messages"][1]]):
        theirs = AlignGPTDataCollator(processor)([{**plain, "messages": messages}])
        assert theirs["input_ids"].tolist() == ours["input_ids"].tolist()
        torch.testing.assert_close(theirs["pixel_values"], ours["pixel_values"])


def test_images_are_opened_as_the_scorer_opens_them(processor, tmp_path):
    Image.fromarray(np.full((16, 16), 128 * 257, dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGB", (16, 16), (128, 128, 128)).save(tmp_path / "grey.png")
    collator = AlignGPTDataCollator(processor, image_folder=str(tmp_path))
    batch = collator([row((U, "", 1), (A, "x"), images=[name]) for name in ("deep.png", "grey.png")])
    torch.testing.assert_close(batch["pixel_values"][0], batch["pixel_values"][1])


def test_a_literal_placeholder_in_a_text_is_text(processor):
    batch = AlignGPTDataCollator(processor)([row((U, "What is <align>?"), (A, "A tag, as <image>."))])
    for token in (processor.align_token_id, processor.image_token_id):
        assert token not in batch["input_ids"]


BAD_ROWS = {
    "missing": row((U, "", 1), (A, "x"), images=["nowhere.png"], id="bad"),
    "corrupt": row((U, "", 1), (A, "x"), images=[b"no image"], id="bad"),
    "placeholder_count": row((U, "", 2), (A, "x"), images=[PICTURE], id="bad"),
    "template": row((A, "x"), (S, "y"), id="bad"),
    "too_long": row((U, "Hi " * 40), (A, "x"), (U, "And?", 1), (A, "y"), images=[PICTURE], id="bad"),
    "no_caption": row(fault={"kind": "no_caption", "message": "There is none."}, id="bad"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_is_an_error_that_names_it(processor, tmp_path, kind):
    collator = AlignGPTDataCollator(processor, image_folder=str(tmp_path), max_length=100)
    with pytest.raises(ValueError, match=f"row bad: {kind}: "):
        collator([CONVERSATIONS[0][0], BAD_ROWS[kind]])


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_skipped_row_keeps_its_place_without_a_label_and_is_reported(processor, tmp_path, kind):
    collator = AlignGPTDataCollator(processor, image_folder=str(tmp_path), max_length=100, on_bad_row="skip")
    batch = collator([BAD_ROWS[kind], CONVERSATIONS[2][0]])
    assert (batch["labels"][0] == -100).all() and (batch["labels"][1] != -100).any()
    assert [(fault.id, fault.kind) for fault in batch["skipped_rows"]] == [("bad", kind)]
    assert len(batch["pixel_values"]) == 1, "only the good row's image"
    alone = collator([BAD_ROWS[kind]])
    assert (alone["labels"] == -100).all() and "pixel_values" not in alone


def test_a_row_that_is_cut_is_reported(processor):
    length = AlignGPTDataCollator(processor)([CONVERSATIONS[1][0]])["input_ids"].shape[1]
    batch = AlignGPTDataCollator(processor, max_length=length - 3)([CONVERSATIONS[1][0], CONVERSATIONS[0][0]])
    assert batch["truncated_rows"] == ["r"]
    assert {values.shape[1] for name, values in batch.items() if name.endswith("ids") and name != "row_ids"} == {
        length - 3
    }


def test_a_batch_without_targets_is_an_error_that_names_the_rows(processor):
    collator = AlignGPTDataCollator(processor, max_length=12)
    with pytest.raises(ValueError, match=r"Rows \['r'\] have no token to train on.*max_length=12"):
        collator([CONVERSATIONS[0][0]])


def test_a_batch_without_targets_is_reported_where_bad_rows_are_skipped(processor):
    batch = AlignGPTDataCollator(processor, max_length=12, on_bad_row="skip")([CONVERSATIONS[0][0]])
    assert batch["rows_without_target"] == ["r"] and (batch["labels"] == -100).all()


def test_a_row_without_targets_among_others_is_reported(processor):
    batch = AlignGPTDataCollator(processor)([row((U, "Blue?"), id="unanswered"), CONVERSATIONS[0][0]])
    assert batch["rows_without_target"] == ["unanswered"]


def test_collating_leaves_the_rows_as_they_were(processor):
    rows = [conversation for conversation, _ in CONVERSATIONS]
    before = copy.deepcopy(rows)
    AlignGPTDataCollator(processor)(rows)
    assert [r["messages"] for r in rows] == [r["messages"] for r in before]
