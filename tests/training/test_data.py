"""Records to rows: which forms are read, and what becomes of those that cannot be."""

import json
from itertools import islice

import datasets
import pytest

from aligngpt.training.arguments import DataArguments, StageConfig
from aligngpt.training.data import load_datasets, load_training_data


RECORDS = [
    {"id": "a", "image": "a.png", "caption": "a cat", "similarity": 3},
    {
        "id": 7,
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


def write_json(path, records):
    path.write_text(json.dumps(records))
    return str(path)


def message(role, text, num_images=0):
    """A message of a row, its images first."""
    texts = [{"type": "text", "text": text}] if text else []
    return {"role": role, "content": [{"type": "image", "text": None}] * num_images + texts, "weight": None}


@pytest.mark.parametrize("streaming", [False, True])
def test_the_three_kinds_of_records_and_ids_of_both_types_become_rows(tmp_path, streaming):
    rows = list(load_training_data(write_json(tmp_path / "mix.json", RECORDS), streaming=streaming))
    for part in (part for row in rows for turn in row["messages"] for part in turn["content"]):
        part.setdefault("text", None)  # a table has it, a stream has not
    assert rows[0] == {
        "id": "a",
        "images": ["a.png"],
        "messages": [message("user", "", 1), message("assistant", "a cat")],
        "alignment_level": 3,
        "num_images": 1,
        "length": 5,
        "notes": ["caption_without_question"],
        "fault": None,
    }
    assert rows[1]["id"] == "7"
    assert rows[1]["messages"] == [
        message("user", "What is it?", 1),
        message("assistant", "12 cats."),
        message("user", "Where?"),
        message("assistant", "On a mat."),
    ]
    assert rows[2]["images"] == [] and rows[2]["alignment_level"] == -1


def test_images_stay_in_the_turn_that_has_their_placeholder(tmp_path):
    turns = [("human", "Hello"), ("gpt", "Hi"), ("human", "<image>\n<image>\nSame?"), ("gpt", "No")]
    record = {"image": ["a.png", "b.png"], "conversations": [{"from": who, "value": text} for who, text in turns]}
    row = load_training_data(write_json(tmp_path / "data.json", [record]))[0]
    assert row["messages"][1:] == [message("assistant", "Hi"), message("user", "Same?", 2), message("assistant", "No")]


def test_a_placeholder_in_an_answer_is_a_word_of_it(tmp_path):
    turns = [("human", "<image>\nWhich token?"), ("gpt", "It is <image>.")]
    record = {"image": "a.png", "conversations": [{"from": who, "value": text} for who, text in turns]}
    row = load_training_data(write_json(tmp_path / "data.json", [record]))[0]
    assert row["messages"] == [message("user", "Which token?", 1), message("assistant", "It is <image>.")]


def test_an_empty_image_is_none(tmp_path):
    record = {"image": "", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    assert load_training_data(write_json(tmp_path / "data.json", [record]))[0]["images"] == []


def test_a_dataset_of_messages_and_images_of_the_hub_s_form_is_read(tmp_path, make_image):
    chat = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Blue?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
    ]
    features = datasets.Features(
        {
            "messages": datasets.List(
                {
                    "role": datasets.Value("string"),
                    "content": datasets.List(dict.fromkeys(("type", "text"), datasets.Value("string"))),
                }
            ),
            "images": datasets.List(datasets.Image()),
        }
    )
    dataset = datasets.Dataset.from_dict({"messages": [chat], "images": [[make_image(0)]]}, features=features)
    dataset.to_parquet(tmp_path / "test.parquet")
    row = load_training_data(str(tmp_path), split="test")[0]
    assert row["messages"] == [message("user", "Blue?", 1), message("assistant", "Yes.")]
    assert row["images"][0]["bytes"].startswith(b"\x89PNG"), "images stay encoded until a worker opens them"


BAD_RECORDS = [
    {"id": "no text", "image": "a.png"},
    {"id": "two images", "image": ["a.png", "b.png"], "conversations": [{"from": "human", "value": "<image>"}]},
    {"id": "no image", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A"}]},
    {"id": "odd level", "image": "a.png", "caption": "cat", "alignment_level": 2.5},
]


def test_records_that_cannot_be_trained_on_are_named_and_counted(tmp_path):
    path = write_json(tmp_path / "bad.json", [*RECORDS, *BAD_RECORDS])
    with pytest.raises(
        ValueError, match=r"4 of 7 records.*row no text: no_caption.*row two images: placeholder_count"
    ):
        load_training_data(path)
    assert len(load_training_data(path, on_bad_row="skip")) == 3
    kept = load_training_data(path, on_bad_row="keep")
    kinds = [fault and fault["kind"] for fault in kept["fault"]]
    assert kinds == [None, None, None, "no_caption", "placeholder_count", "missing", "malformed_record"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_without_records_is_an_error_that_names_it(tmp_path, streaming):
    with pytest.raises(ValueError, match="There are no records in .*empty.json"):
        load_training_data(write_json(tmp_path / "empty.json", []), streaming=streaming)


def test_a_file_that_changed_is_read_anew(tmp_path):
    path = tmp_path / "data.json"
    assert len(load_training_data(write_json(path, RECORDS))) == 3
    assert len(load_training_data(write_json(path, RECORDS[:2]))) == 2


def test_a_file_that_changed_in_its_middle_alone_is_read_anew(tmp_path):
    rows = [{"id": i, "image": f"{i}.png", "caption": "cat " * 10} for i in range(5000)]
    path = tmp_path / "data.json"
    load_training_data(write_json(path, rows))
    rows[2500]["image"] = "2500.jpg"
    assert load_training_data(write_json(path, rows))[2500]["images"] == ["2500.jpg"]


def test_streamed_rows_are_shuffled_by_the_seed_without_an_end(tmp_path):
    path = write_json(tmp_path / "data.json", [{"id": i, "image": "a.png", "caption": "cat"} for i in range(50)])

    def ids(seed, count):
        data_args = DataArguments(data=path, streaming=True, shuffle_buffer_size=50)
        training_args = StageConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, seed=seed)
        rows = load_datasets(data_args, training_args)["train_dataset"]
        return [int(row["id"]) for row in islice(rows, count)]

    assert ids(1, 120) == ids(1, 120) != ids(2, 120)
    assert sorted(set(ids(1, 150))) == list(range(50))


@pytest.mark.parametrize("level", ["NaN", "Infinity", "1e30", "2.5", '"3"', "true"])
def test_a_level_that_is_none_is_a_fault_of_its_row(tmp_path, level):
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"id": "x", "image": "a.png", "caption": "cat", "alignment_level": {level}}}\n')
    fault = load_training_data(str(path), on_bad_row="keep")["fault"][0]
    assert fault["kind"] == "malformed_record" and fault["message"].startswith("The alignment")


def test_half_characters_in_a_text_are_a_fault_of_the_row_that_does_not_end_the_reading(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"id": "\\ud83d", "image": "a.png", "caption": "a cat \\ud83d"}\n')
    (row,) = load_training_data(str(path), on_bad_row="keep")
    assert row["id"] == "\\ud83d" and row["fault"]["kind"] == "malformed_record"


UNKNOWN_FIELD = [{"id": index, "file_name": "a.png", "caption": "a cat", "alignment_level": 0} for index in range(3)]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("needs_images", "image_folder", "why"),
    [(True, None, "stage 1 needs one"), (False, ".", "an image folder is named")],
)
def test_pictures_under_a_name_that_is_not_known_are_refused_by_that_name(
    needs_images, image_folder, why, streaming, tmp_path
):
    path = write_json(tmp_path / "data.json", UNKNOWN_FIELD)
    training_args = StageConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    data_args = DataArguments(data=path, image_folder=image_folder, streaming=streaming)
    with pytest.raises(ValueError, match=rf"No row of .* has a picture, and {why}.*'file_name'.*--image_column"):
        load_datasets(data_args, training_args, needs_images)
    data_args.image_column = "file_name"
    row = next(iter(load_datasets(data_args, training_args, needs_images)["train_dataset"]))
    assert row["images"] == ["a.png"]


def test_text_without_pictures_trains_in_stage_2_where_no_image_folder_is_named(tmp_path):
    path = write_json(tmp_path / "data.json", RECORDS[2:])
    training_args = StageConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert len(load_datasets(DataArguments(data=path), training_args)["train_dataset"]) == 1


def test_captions_without_a_question_and_dropped_answers_are_told_by_number(tmp_path, caplog):
    opened = [{"from": "gpt", "value": "Hello."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hm."}]
    path = write_json(tmp_path / "data.json", [*RECORDS, {"id": "d", "conversations": opened}])
    training_args = StageConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    for needs_images in (False, True):
        caplog.clear()
        with caplog.at_level("WARNING", logger="aligngpt"):
            load_datasets(DataArguments(data=path), training_args, needs_images)
        assert "1 of 4 rows" in caplog.text and "first turn by the assistant was left out" in caplog.text
        assert ("a caption without a question" in caplog.text) == (not needs_images)


def test_a_stream_whose_first_picture_comes_late_is_told_and_read_on(tmp_path, caplog):
    records = [{"id": i, "messages": RECORDS[2]["messages"]} for i in range(1005)] + RECORDS[:2]
    path = write_json(tmp_path / "data.json", records)
    training_args = StageConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    with caplog.at_level("WARNING", logger="aligngpt"):
        load_datasets(DataArguments(data=path, image_folder=".", streaming=True), training_args)
    assert "Of the first 1000 rows: No row of" in caplog.text


def test_tables_with_pictures_under_an_unknown_name_are_refused_without_an_image_folder(tmp_path, make_image):
    data = datasets.Dataset.from_dict({"jpg": [make_image(0)], "messages": [RECORDS[2]["messages"]]})
    data.cast_column("jpg", datasets.Image()).to_parquet(tmp_path / "data.parquet")
    training_args = StageConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match=r"its tables hold bytes.*'jpg'"):
        load_datasets(DataArguments(data=str(tmp_path / "data.parquet")), training_args)
    with pytest.raises(ValueError, match=r"a column of images is named, pictures"):
        load_datasets(
            DataArguments(data=write_json(tmp_path / "d.json", RECORDS[2:]), image_column="pictures"), training_args
        )
