"""Records, batches and labels."""

import json

import pytest

from aligngpt.training.data import AlignGPTDataCollator, load_training_data


RECORDS = [
    {"id": "a", "image": "a.png", "caption": "a cat", "similarity": 3},
    {
        "id": "b",
        "image": "a.png",
        "conversations": [
            {"from": "human", "value": "What is it?\n<image>"},
            {"from": "gpt", "value": "12 cats."},
            {"from": "human", "value": "Where?"},
            {"from": "gpt", "value": "On a mat."},
        ],
        "alignment_level": 7,
    },
    {"id": "c", "messages": [{"role": "user", "content": "Blue?"}, {"role": "assistant", "content": "Yes."}]},
]


@pytest.fixture
def dataset(tmp_path, make_image):
    make_image(0).save(tmp_path / "a.png")
    rows = []
    for record in RECORDS:  # one file each: their columns differ
        path = tmp_path / f"{record['id']}.jsonl"
        path.write_text(json.dumps(record) + "\n")
        rows.append(load_training_data(str(path), str(tmp_path))[0])
    return rows


def trained_text(processor, batch, row):
    """The tokens of a row that have a label, as text."""
    labels = batch["labels"][row]
    assert (labels[labels != -100] == batch["input_ids"][row][labels != -100]).all()
    return processor.tokenizer.decode(labels[labels != -100])


def test_the_three_kinds_of_records_become_messages(dataset, tmp_path):
    caption, conversation, text_only = dataset
    assert caption == {
        "id": "a",
        "images": [str(tmp_path / "a.png")],
        "messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "a cat"}],
        "alignment_level": 3,
    }
    assert conversation["messages"][0] == {"role": "user", "content": "What is it?"}
    assert [message["role"] for message in conversation["messages"]] == ["user", "assistant"] * 2
    assert text_only["images"] == [] and text_only["alignment_level"] == -1


def test_a_record_without_text_is_named(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"id": "x7", "image": "a.png"}\n')
    with pytest.raises(Exception, match="Record x7: There is none of messages, conversations, caption, text"):
        load_training_data(str(path))


def test_stage_1_trains_the_caption_and_a_newline(processor, dataset):
    collator = AlignGPTDataCollator(processor, chat_template="plain", num_alignment_levels=8)
    batch = collator([dataset[0]])
    tokens = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    caption = processor.tokenizer.tokenize("a cat\n")
    assert tokens == ["<s>", "<align>", *["<image>"] * 16, *caption]
    assert batch["labels"][0].tolist() == [-100] * 18 + processor.tokenizer.convert_tokens_to_ids(caption)
    assert batch["alignment_levels"].tolist() == [3]
    assert not batch["token_type_ids"].any(), "the gate must not read the caption"


def test_stage_2_trains_the_answers_with_their_end_tokens(processor, dataset):
    batch = AlignGPTDataCollator(processor)([dataset[1], dataset[2]])
    assert trained_text(processor, batch, 0) == "12 cats.</s> On a mat.</s>"
    assert trained_text(processor, batch, 1) == "Yes.</s>"
    assert "alignment_levels" not in batch, "stage 2 leaves the level to the gate"
    assert batch["attention_mask"][1].tolist() == sorted(batch["attention_mask"][1].tolist(), reverse=True)
    assert len(batch["pixel_values"]) == 1


@pytest.mark.parametrize("level", [-1, 8, None])
def test_a_missing_level_or_one_out_of_range_names_the_row_in_stage_1(processor, dataset, level):
    collator = AlignGPTDataCollator(processor, chat_template="plain", num_alignment_levels=8)
    with pytest.raises(ValueError, match=rf"Row a has alignment level {level}; stage 1 needs 0\.\.7"):
        collator([{**dataset[0], "alignment_level": level}])


def test_a_row_whose_answer_is_cut_off_is_named(processor, dataset):
    collator = AlignGPTDataCollator(processor, max_length=12)
    with pytest.raises(ValueError, match=r"Rows \['c'\] have no token to train on.*max_length=12"):
        collator([dataset[2]])


def test_collating_leaves_the_rows_as_they_were(processor, dataset):
    before = json.dumps(dataset[1])
    AlignGPTDataCollator(processor)([dataset[1]])
    assert json.dumps(dataset[1]) == before
