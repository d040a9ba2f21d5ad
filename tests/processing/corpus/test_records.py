"""What single records mean, where the table of test_one_meaning.py has no room: places, weights, columns, tars."""

import io
import json
import tarfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aligngpt.processing.corpus.faults import FAULT_KINDS, Fault
from aligngpt.processing.corpus.images import open_image
from aligngpt.processing.corpus.records import read_record
from aligngpt.processing.corpus.sources import open_corpus
from aligngpt.processing.levels.outputs import _llava_record
from aligngpt.training.collator import AlignGPTDataCollator
from aligngpt.training.data import load_training_data
from aligngpt.weights.exporting import mean_gate_weights


ANSWER = {"role": "assistant", "content": "A cat."}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def text(text):
    return {"type": "text", "text": text}


def shape(sample):
    """The user's first content, with <image> for an image part."""
    return ["<image>" if part["type"] == "image" else part["text"] for part in sample.messages[0]["content"]]


def png(seed=0):
    with io.BytesIO() as file:
        Image.new("RGB", (4, 4), (seed, 0, 0)).save(file, "PNG")
        return file.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)


def test_typed_parts_keep_their_order():
    parts = [text("a"), {"type": "image"}, text("b"), {"type": "image", "path": "2.png"}]
    sample = read_record({"image": "1.png", "messages": [user(*parts), ANSWER]})
    assert shape(sample) == ["a", "<image>", "b", "<image>"]
    assert sample.images == ["1.png", "2.png"]


@pytest.mark.parametrize(
    ("written", "first", "placed"),
    [
        ("<image>\nWhat?", ["<image>", "What?"], ["<image>", "What?"]),
        ("What?\n<image>", ["<image>", "What?"], ["What?\n", "<image>"]),
        (
            "Is <image> like <image>?",
            ["<image>", "<image>", "Is  like ?"],
            ["Is ", "<image>", " like ", "<image>", "?"],
        ),
    ],
)
def test_an_image_in_a_string_comes_first_unless_its_place_is_asked_for(written, first, placed):
    images = [f"{index}.png" for index in range(written.count("<image>"))]
    record = {"images": images, "messages": [{"role": "user", "content": written}, ANSWER]}
    assert shape(read_record(record)) == first
    assert shape(read_record(record, interleaved=True)) == placed


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_sample_written_as_strings_is_read_as_the_same_sample(interleaved):
    turns = [user(text("a"), {"type": "image"}, text("b")), {**ANSWER, "weight": 0}, user(text("c")), ANSWER]
    for messages in (turns, [user({"type": "image"}, text("a")), ANSWER], [user(text("Hi")), ANSWER, *turns]):
        sample = read_record({"image": "1.png", "messages": messages})
        again = read_record({"image": "1.png", "messages": sample.written_messages()}, interleaved)
        assert again.images == sample.images and again.caption == sample.caption
        assert [turn["weight"] for turn in again.messages] == [turn["weight"] for turn in sample.messages]
        if interleaved:
            assert [turn["content"] for turn in again.messages] == [turn["content"] for turn in sample.messages]
        where = [[part["type"] for part in turn["content"]].count("image") for turn in sample.messages]
        assert [[part["type"] for part in turn["content"]].count("image") for turn in again.messages] == where


def test_a_row_of_training_data_is_a_record_with_the_same_meaning(tmp_path):
    parts = [text("a"), {"type": "image"}, text("b")]
    record = {
        "id": "x",
        "image": "1.png",
        "messages": [user(*parts), {**ANSWER, "weight": 0}, ANSWER],
        "similarity": 2,
    }
    (tmp_path / "data.json").write_text(json.dumps([record]))
    (row,) = load_training_data(str(tmp_path / "data.json"))
    assert read_record(row) == read_record(record)


def test_what_nobody_thought_of_is_a_fault_of_one_record():
    class Odd(dict):
        def get(self, name, *_):
            if name != "id":
                raise ZeroDivisionError("who knows")

    fault = read_record(Odd())
    assert fault.kind == "unexpected" and str(fault) == "ZeroDivisionError: who knows"


def test_a_fault_names_its_record_and_survives_a_worker():
    import pickle

    fault = pickle.loads(pickle.dumps(read_record({"id": 7, "image": "x"})))
    assert (fault.id, fault.kind) == ("7", "no_caption") and "['id', 'image']" in str(fault)


def test_a_kind_that_is_not_in_the_list_is_refused():
    with pytest.raises(KeyError, match="no kind of fault 'odd'"):
        Fault("odd", "message")


def test_the_docs_show_every_kind_with_its_meaning(request):
    page = (request.config.rootpath / "docs" / "faults.md").read_text()
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| `")]
    assert {kind.strip(" `"): meaning.strip() for kind, meaning in rows} == FAULT_KINDS


def test_an_answer_of_weight_0_is_read_and_not_trained(processor):
    messages = [user(text("Q1")), {**ANSWER, "content": "No.", "weight": 0}, user(text("Q2")), ANSWER]
    batch = AlignGPTDataCollator(processor)([{"messages": messages}])
    everything = AlignGPTDataCollator(processor)([{"messages": [dict(turn, weight=None) for turn in messages]}])
    assert batch["input_ids"].tolist() == everything["input_ids"].tolist()
    assert batch["token_type_ids"].tolist() == everything["token_type_ids"].tolist()
    labels = batch["labels"][0]
    assert processor.decode(labels[labels != -100]).strip() == "A cat.</s>"


@pytest.mark.parametrize("template", ["vicuna_v1", "chatml", "llama3", "mistral", "gemma", "phi3"])
def test_an_interleaved_template_leaves_images_in_their_places(template, processor):
    from aligngpt.processing import load_chat_template
    from aligngpt.processing.chat_templates import interleave, is_interleaved

    source = load_chat_template(template)
    chat = [user(text("One "), {"type": "image"}, text("two "), {"type": "image"}), ANSWER]
    placed = processor.apply_chat_template(chat, chat_template=interleave(source))
    assert "One <image>\ntwo <image>\n" in placed
    assert placed == processor.apply_chat_template(chat, chat_template=source, interleaved=True)
    assert "<image>\n<image>\nOne two " in processor.apply_chat_template(chat, chat_template=source)
    assert is_interleaved(interleave(source)) and not is_interleaved({"default": source})
    answer_alone = [user(text("Q")), ANSWER]
    assert processor.apply_chat_template(answer_alone, chat_template=interleave(source)) == (
        processor.apply_chat_template(answer_alone, chat_template=source)
    )


def test_a_picture_of_an_unknown_kind_in_a_tar_is_missing_by_name(tmp_path):
    members = {"1.heic": b"x", "1.txt": b"one", "2.png": png(), "2.txt": b"two", "3.txt": b"three", "3.json": b"{}"}
    rows = [read_record(row) for shard in open_corpus(write_tar(tmp_path / "x.tar", members)) for row in shard.read(0)]
    assert rows[0].kind == "missing" and "['heic', 'txt']" in str(rows[0])
    assert [len(row.images) for row in rows[1:]] == [1, 0]


@pytest.mark.parametrize("column", ["cap", "outputs.txt", ".outputs.txt"])
def test_a_tars_captions_are_found_under_the_extension_that_is_named(column, tmp_path):
    members = {"1.png": png(), "1.cap": b"one", "1.outputs.txt": b"one"}
    path = write_tar(tmp_path / "x.tar", members)
    (row,) = (row for shard in open_corpus(path, text_column=column) for row in shard.read(0))
    assert read_record(row).caption == "one"
    (row,) = (row for shard in open_corpus(path) for row in shard.read(0))
    fault = read_record(row)
    assert fault.kind == "no_caption" and "'cap', 'id', 'images', 'outputs.txt'" in str(fault)


def test_a_tars_picture_is_found_under_the_extension_that_is_named(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"1.png": png(1), "1.left.png": png(2), "1.txt": b"one", "2.png": png(1)})
    rows = [row for shard in open_corpus(path, image_column="left.png") for row in shard.read(0)]
    assert read_record(rows[0]).images[0]["bytes"] == png(2)
    assert read_record(rows[1]).kind == "missing", "it has another picture, which nobody asked for"


def test_one_broken_picture_inside_messages_of_parquet_costs_one_row(processor, tmp_path):
    part = {"type": datasets.Value("string"), "text": datasets.Value("string"), "image": datasets.Image()}
    turn = {"role": datasets.Value("string"), "content": datasets.List(part)}
    features = datasets.Features({"id": datasets.Value("string"), "messages": datasets.List(turn)})
    pictures = [png(0), b"\x89PNG broken", png(2)]
    rows = [
        [
            user(
                {"type": "image", "image": {"bytes": picture, "path": None}, "text": None},
                {**text("What?"), "image": None},
            ),
            {"role": "assistant", "content": [{**text("A cat."), "image": None}]},
        ]
        for picture in pictures
    ]
    data = datasets.Dataset.from_dict({"id": ["0", "1", "2"], "messages": rows}, features=features)
    data.to_parquet(tmp_path / "chats.parquet")
    rows = list(load_training_data(str(tmp_path / "chats.parquet")))
    assert [row["images"][0]["bytes"] for row in rows] == pictures
    batch = AlignGPTDataCollator(processor, on_bad_row="skip")(rows)
    assert [(fault.id, fault.kind) for fault in batch["skipped_rows"]] == [("1", "corrupt")]
    assert len(batch["pixel_values"]) == 2


@pytest.mark.parametrize("name", ["1.jpg", "2.json", "3"])
def test_a_tars_picture_that_cannot_be_taken_is_missing_and_not_passed_over(name, tmp_path):
    members = {"2.json": json.dumps({"image": "x.jpg", "caption": "two"}).encode()} if name == "2.json" else {}
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for member, content in {"0.png": png(), **members, f"{name[0]}.txt": b"text"}.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if name == "1.jpg":
            link = tarfile.TarInfo("1.jpg")
            link.type, link.linkname = tarfile.LNKTYPE, "0.png"
            archive.addfile(link)
        if name == "3":
            archive.addfile(tarfile.TarInfo("3"))
    rows = [read_record(row) for shard in open_corpus(str(tmp_path / "x.tar")) for row in shard.read(0)]
    assert rows[-1].kind == "missing" and rows[-1].id == name[0]


def test_a_picture_without_bytes_is_one_fault_and_no_other_file_takes_its_place(processor, tmp_path):
    path = write_tar(tmp_path / "x.tar", {"1.png": b"", "1.txt": b"one", "2.png": png(), "2.txt": b"two"})
    rows = list(load_training_data(path))
    (tmp_path / "1.png").write_bytes(png())
    batch = AlignGPTDataCollator(processor, image_folder=str(tmp_path), on_bad_row="skip")(rows)
    assert [(fault.id, fault.kind) for fault in batch["skipped_rows"]] == [("1", "zero_sized")]


@pytest.mark.parametrize("form", ["a.json", "a.jsonl"])
def test_half_a_character_is_a_fault_in_every_form_of_json(form, tmp_path):
    records = [
        '{"image": "1.png", "caption": "half \\ud83d cat"}',
        '{"image": "1.png", "caption": "whole \\ud83d\\ude00 cat"}',
        '{"image": "1.png", "caption": "other half \\ude00 cat"}',
    ]
    text = "[" + ", ".join(records) + "]" if form == "a.json" else "\n".join(records)
    (tmp_path / form).write_text(text)
    rows = [read_record(row) for shard in open_corpus(str(tmp_path / form)) for row in shard.read(0)]
    assert [getattr(row, "kind", None) for row in rows] == ["malformed_record", None, "malformed_record"]
    assert rows[1].caption == "whole \U0001f600 cat"


@pytest.mark.parametrize("escape", ["\\ud83d", "\\ude00", "\\ud83d\\ude00"])
def test_an_escape_is_read_alike_wherever_a_block_of_the_file_ends(escape, tmp_path):
    block, path = 65_536, tmp_path / "a.json"  # of ijson
    for shift in range(-16, 6):
        start = '[{"caption": "'
        text = start + "x" * (block + shift - len(start)) + escape + '"}, {"caption": "y"}]'
        path.write_text(text)
        rows = [row for shard in open_corpus(str(path)) for row in shard.read(0)]
        assert rows == json.loads(text), shift


def test_a_line_nested_without_end_is_a_fault_of_its_row(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + '}\n{"caption": "x"}\n')
    rows = [read_record(row) for shard in open_corpus(str(tmp_path / "a.jsonl")) for row in shard.read(0)]
    assert rows[0].kind == "malformed_record" and rows[1].caption == "x"


def test_each_file_of_a_corpus_may_hold_its_images_in_its_own_way(processor, tmp_path):
    datasets.Dataset.from_dict({"image": ["1.png"], "text": ["one"]}).to_parquet(tmp_path / "a.parquet")
    inside = datasets.Dataset.from_dict({"image": [{"bytes": png(200), "path": "1.png"}], "text": ["two"]})
    inside.cast_column("image", datasets.Image()).to_parquet(tmp_path / "b.parquet")
    large = pa.table({"images": pa.array([[png(100)]], pa.large_list(pa.large_binary())), "text": ["three"]})
    pq.write_table(large, tmp_path / "c.parquet")
    (tmp_path / "1.png").write_bytes(png(50))
    rows = list(load_training_data(str(tmp_path / "*.parquet")))
    reds = [open_image(row["images"][0], str(tmp_path))[0].getpixel((0, 0))[0] for row in rows]
    assert reds == [50, 200, 100]


def test_a_first_turn_by_the_assistant_survives_llavas_form(tmp_path):
    record = {"messages": [{**ANSWER, "content": "Hello."}, user(text("Hi")), ANSWER]}
    sample = read_record(record)
    row = {"id": "x", "image": None, "caption": sample.caption, "messages": sample.written_messages()}
    again = read_record(_llava_record(row))
    assert again.caption == sample.caption and not again.notes


def test_placeholders_in_a_calibration_question_are_text_as_in_training(model, processor, make_image):
    question = {"role": "user", "content": "<image>\nWhat does <align> mean?"}
    weights = mean_gate_weights(model, processor, [{"image": make_image(0), "messages": [question]}])
    batch = AlignGPTDataCollator(processor)([{"image": make_image(0), "messages": [question, ANSWER]}])
    assert weights.shape == (7,) and (batch["input_ids"] == processor.align_token_id).sum() == 1


def test_rows_of_other_sources_that_are_no_records_are_faults(processor):
    rows = [{"fault": "none", "messages": [user(text("Hi")), ANSWER]}, ["no", "record"]]
    batch = AlignGPTDataCollator(processor, on_bad_row="skip")(rows)
    assert [(fault.id, fault.kind) for fault in batch["skipped_rows"]] == [("1", "malformed_record")]
