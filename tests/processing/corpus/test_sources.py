"""Corpora of all kinds read as the same rows."""

import gzip
import io
import json
import tarfile

import datasets
import fsspec
import pytest
from PIL import Image

from aligngpt.processing.corpus.faults import Fault
from aligngpt.processing.corpus.records import read_record
from aligngpt.processing.corpus.sources import open_corpus


RECORDS = [{"id": index, "image": f"{index}.png", "caption": f"picture {index}"} for index in range(7)]


def png(seed: int = 0) -> bytes:
    with io.BytesIO() as file:
        Image.new("RGB", (4, 4), (seed, 0, 0)).save(file, "PNG")
        return file.getvalue()


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def read(record):
    """The record's sample; a fault is raised."""
    sample = read_record(record)
    if isinstance(sample, Fault):
        raise sample
    return sample


def get_caption(record):
    return read(record).caption


def get_images(record):
    return read(record).images


def get_messages(record):
    return [{name: turn[name] for name in ("role", "content")} for turn in read(record).written_messages()]


def rows_of(data, **options):
    return [row for shard in open_corpus(str(data), **options) for row in shard.read(0)]


def test_a_json_array_and_json_lines_are_read_alike(tmp_path):
    array, lines, zipped = tmp_path / "a.json", tmp_path / "b.jsonl", tmp_path / "c.jsonl.gz"
    array.write_text(" \n" + json.dumps(RECORDS, indent=2))
    lines.write_text("\n\n".join(json.dumps(record) for record in RECORDS) + "\n")
    zipped.write_bytes(gzip.compress(lines.read_bytes()))
    for path in (array, lines, zipped):
        assert rows_of(path) == RECORDS
        (shard,) = open_corpus(str(path))
        assert (shard.name, shard.embedded_images, shard.count_rows()) == (path.name, False, 7)
        assert list(shard.read(5)) == RECORDS[5:]


def test_rows_that_no_schema_fits_are_read_and_what_is_no_record_is_a_fault(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 1}\n{"id": "b", "caption": 5}\n{"id": \n[1]\n{"caption": ["x"]}\n')
    rows = rows_of(tmp_path / "a.jsonl")
    assert [rows[0], rows[1], rows[4]] == [{"id": 1}, {"id": "b", "caption": 5}, {"caption": ["x"]}]
    assert [row.kind for row in rows[2:4]] == ["malformed_record"] * 2


def test_a_json_array_as_python_writes_it_is_read_whole(tmp_path):
    records = [{"id": 1, "loss": float("nan")}, {"id": 2, "caption": "half \ud83d"}, {"id": 3}]
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(records), encoding="utf-8")
    rows = rows_of(tmp_path / "a.json")
    assert [row["id"] for row in rows] == [1, 2, 3] and rows[0]["loss"] != rows[0]["loss"]
    assert rows[1]["caption"] == "half \ud83d"


def test_a_json_array_cut_off_gives_its_rows_and_a_fault(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(RECORDS)[:-30])
    rows = rows_of(tmp_path / "a.json")
    assert rows[:-1] == RECORDS[:6] and rows[-1].kind == "broken_shard"
    assert "first 6 rows" in str(rows[-1])


def test_samples_of_webdataset_tars_become_records(tmp_path):
    members = [("a/1.jpg", png(1)), ("a/1.txt", b"one"), ("a/._2.jpg", b"junk"), ("a/2.json", b'{"caption": "two"}')]
    members += [
        ("a/2.seg.png", png(9)),
        ("a/2.png", png(2)),
        ("a/3.txt", b"only text"),
        ("b/3.png", png(3)),
        ("b/3.txt", b"drei"),
    ]
    write_tar(tmp_path / "x.tar", members)
    write_tar(tmp_path / "x.tgz", members, "w:gz")
    for name in ("x.tar", "x.tgz"):
        (shard,) = open_corpus(str(tmp_path / name))
        rows = list(shard.read(0))
        assert [row["id"] for row in rows] == ["a/1", "a/2", "a/3", "b/3"]
        assert [get_caption(row) for row in rows] == ["one", "two", "only text", "drei"]
        assert [[image["bytes"] for image in get_images(row)] for row in rows] == [[png(1)], [png(2)], [], [png(3)]]
        assert shard.embedded_images and shard.count_rows() == 4
        assert list(shard.read(3)) == rows[3:]


def test_a_tar_cut_off_gives_its_whole_samples_and_a_fault(tmp_path):
    write_tar(tmp_path / "x.tar", [(f"{index}.{name}", png(index)) for index in range(5) for name in ("png", "jpg")])
    (tmp_path / "x.tar").write_bytes((tmp_path / "x.tar").read_bytes()[: 512 * 2 * 7 + 600])
    rows = rows_of(tmp_path / "x.tar")
    assert [row["id"] for row in rows[:-1]] == ["0", "1", "2"] and rows[-1].kind == "broken_shard"


def test_an_image_path_inside_a_tars_json_is_not_followed(tmp_path):
    write_tar(tmp_path / "x.tar", [("1.json", b'{"image": "/etc/passwd", "caption": "x"}'), ("1.png", png())])
    (row,) = rows_of(tmp_path / "x.tar")
    assert [image["bytes"] for image in get_images(row)] == [png()]


def test_broken_text_in_a_tar_is_a_malformed_record(tmp_path):
    write_tar(tmp_path / "x.tar", [("1.txt", b"\xff\xfe\xff"), ("2.json", b"{"), ("3.json", b"[1]"), ("4.txt", b"x")])
    rows = rows_of(tmp_path / "x.tar")
    assert [row.kind for row in rows[:3]] == ["malformed_record"] * 3 and rows[3]["caption"] == "x"


@pytest.fixture
def parquet_folder(tmp_path):
    for shard in range(3):
        pictures = [Image.new("RGB", (4, 4), (10 * shard + row, 0, 0)) for row in range(4)]
        captions = [f"{shard}-{row}" for row in range(4)]
        data = datasets.Dataset.from_dict({"image": pictures, "text": captions})
        data = data.cast_column("image", datasets.Image())
        data.to_parquet(tmp_path / f"train-{shard:05d}-of-00003.parquet")
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_parquet_files_is_a_shard_a_file(parquet_folder, streaming):
    for data in (parquet_folder, parquet_folder / "*.parquet"):
        shards = open_corpus(str(data), streaming=streaming)
        assert [shard.name for shard in shards] == [f"train-0000{index}-of-00003.parquet" for index in range(3)]
        assert all(shard.embedded_images and shard.count_rows() == 4 for shard in shards)
        assert [row["text"] for row in shards[1].read(2)] == ["1-2", "1-3"]
        (image,) = get_images(next(shards[2].read(3)))
        assert Image.open(io.BytesIO(image["bytes"])).getpixel((0, 0)) == (23, 0, 0)


def test_a_dataset_in_memory_streamed_or_saved_gives_the_same_rows(parquet_folder, tmp_path):
    whole = datasets.Dataset.from_parquet(str(parquet_folder / "*.parquet"))
    streamed = datasets.load_dataset(
        "parquet", data_files=str(parquet_folder / "*.parquet"), split="train", streaming=True
    )
    whole.save_to_disk(tmp_path / "saved")
    expected = rows_of(parquet_folder)
    assert len(expected) == 12
    for data in (whole, streamed, str(tmp_path / "saved")):
        assert [row for shard in open_corpus(data) for row in shard.read(0)] == expected
    assert len(open_corpus(streamed)) == 3


def test_a_split_that_is_not_there_is_named_with_those_that_are(parquet_folder, tmp_path):
    datasets.DatasetDict(test=datasets.Dataset.from_dict({"text": ["x"]})).save_to_disk(tmp_path / "saved")
    for data in (parquet_folder, tmp_path / "saved"):
        with pytest.raises(ValueError, match="no split 'validation'; there are"):
            open_corpus(str(data), split="validation")


def test_an_image_folder_is_read_with_its_images(tmp_path):
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(png(index))
    (tmp_path / "1.png").write_bytes(b"broken")
    lines = [json.dumps({"file_name": f"{index}.png", "text": f"picture {index}"}) for index in range(3)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    rows = rows_of(tmp_path)
    assert [get_caption(row) for row in rows] == ["picture 0", "picture 1", "picture 2"]
    assert [get_images(row)[0]["bytes"] for row in rows] == [png(0), b"broken", png(2)]


def test_columns_can_have_other_names(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"photo": "x.png", "alt": "a cat", "text": "junk", "images": ["y.png"]}\n')
    (row,) = rows_of(tmp_path / "a.jsonl", image_column="photo", text_column="alt")
    assert get_images(row) == ["x.png"] and get_caption(row) == "a cat"


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ("no.json", FileNotFoundError, "no file, folder or dataset 'no.json'"),
        ("no-*.tar", FileNotFoundError, "no file, folder or dataset"),
        ("a.docx", ValueError, "format of .*a.docx is unknown"),
    ],
)
def test_what_is_not_there_or_unknown_is_an_error(data, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(error, match=message):
        open_corpus(data)


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"image": "x"}, "no_caption"),
        ({"image": "x", "caption": None}, "no_caption"),
        ({"image": "x", "conversations": [{"from": "human", "value": "hi"}]}, "no_caption"),
        ({"image": "x", "caption": " \n"}, "empty_caption"),
        ({"image": "x", "messages": [{"role": "assistant", "content": ""}]}, "empty_caption"),
        ({"image": "x", "caption": 5}, "non_string_caption"),
        ({"image": "x", "caption": ["a", "b"]}, "non_string_caption"),
        ({"image": "x", "conversations": [{"from": "gpt", "value": None}]}, "non_string_caption"),
        ({"image": "x", "conversations": [{"from": "bot", "value": "hi"}]}, "malformed_record"),
        ({"image": "x", "conversations": ["hi"]}, "malformed_record"),
        ({"image": "x", "messages": [{"role": "user"}]}, "malformed_record"),
        ({"image": "x", "messages": "hi"}, "malformed_record"),
        ({"image": "x", "messages": 5}, "malformed_record"),
        ({"image": "x", "messages": [{"role": ["assistant"], "content": "hi"}]}, "malformed_record"),
        ({"image": "x", "messages": [{"role": "assistant", "content": [{"type": "text"}]}]}, "non_string_caption"),
    ],
)
def test_a_caption_that_cannot_be_used_is_refused_by_its_kind(record, kind):
    with pytest.raises(Fault) as refused:
        get_caption(record)
    assert refused.value.kind == kind


def test_the_caption_is_what_the_assistant_says():
    conversation = [("human", "What?\n<image>"), ("gpt", "A cat."), ("human", "More?"), ("gpt", "On a mat.")]
    record = {"image": "x", "conversations": [{"from": role, "value": text} for role, text in conversation]}
    assert get_caption(record) == "A cat.\nOn a mat."
    assert get_messages(record)[0] == {"role": "user", "content": "What?"}
    parts = [{"type": "text", "text": "A "}, {"type": "text", "text": "dog."}]
    assert get_caption({"messages": [{"role": "assistant", "content": parts}]}) == "A dog."


@pytest.mark.parametrize("cut", [lambda data: data[: 512 * 4], lambda data: data[: 512 * 4 + 200]])
def test_a_tar_cut_at_a_header_is_not_taken_for_a_whole_one(cut, tmp_path):
    write_tar(tmp_path / "x.tar", [(f"{index}.png", png(index)) for index in range(6)])
    (tmp_path / "x.tar").write_bytes(cut((tmp_path / "x.tar").read_bytes()))
    rows = rows_of(tmp_path / "x.tar")
    assert len(rows) == 2 and rows[-1].kind == "broken_shard"


def test_a_tar_with_a_broken_header_is_not_taken_for_a_shorter_one(tmp_path):
    write_tar(tmp_path / "x.tar", [(f"{index}.png", png(index)) for index in range(6)])
    data = bytearray((tmp_path / "x.tar").read_bytes())
    data[512 * 6 : 512 * 6 + 100] = b"\xff" * 100
    (tmp_path / "x.tar").write_bytes(data)
    rows = rows_of(tmp_path / "x.tar")
    assert [row["id"] for row in rows[:-1]] == ["0", "1"] and rows[-1].kind == "broken_shard"


def test_two_files_of_one_name_in_a_sample_are_a_malformed_record(tmp_path):
    write_tar(tmp_path / "x.tar", [("1.png", png(1)), ("1.png", png(2)), ("1.txt", b"one"), ("2.png", png(3))])
    first, second = rows_of(tmp_path / "x.tar")
    assert first.kind == "malformed_record" and second["id"] == "2"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("b.parquet", b"PAR1 no, it is not"),
        ("b.parquet", b""),
        ("b.csv", "text\n\xe4\n".encode("latin-1")),
        ("b.csv", b""),
        ("b.jsonl.gz", b"no gzip"),
        ("b.jsonl.xz", b"no xz"),
        ("b.tar", b""),
    ],
)
def test_a_file_that_cannot_be_read_is_one_fault_and_others_go_on(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    good = tmp_path / f"a.{name.split('.', 1)[1]}"
    if name == "b.parquet":
        datasets.Dataset.from_dict({"image": ["x.png"], "text": ["x"]}).to_parquet(good)
    elif name == "b.csv":
        good.write_text("image,text\nx.png,x\n")
    elif name == "b.tar":
        write_tar(good, [("x.txt", b"x")])
    else:
        with fsspec.open(str(good), "wb", compression="infer") as file:
            file.write(b'{"image": "x.png", "text": "x"}\n')
    shards = open_corpus(str(tmp_path / "*.*"))
    rows = [list(shard.read(0)) for shard in shards]
    assert [shard.count_rows() for shard in shards][0] in (1, None)
    assert get_caption(rows[0][0]) == "x" and [row.kind for row in rows[1]] == ["broken_shard"]


def test_a_table_without_rows_has_none(tmp_path):
    datasets.Dataset.from_dict({"image": [], "text": []}).to_parquet(tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet") == []


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a"}]},
    ],
)
def test_a_text_with_a_place_for_an_image_is_no_text_only_record(record):
    with pytest.raises(Fault) as refused:
        get_images(record)
    assert refused.value.kind == "missing"


def test_an_image_inside_a_message_is_the_records():
    content = [{"type": "image", "path": "x.png"}, {"type": "text", "text": "What?"}]
    assert get_images({"messages": [{"role": "user", "content": content}]}) == ["x.png"]


def test_placeholders_in_messages_are_no_text():
    messages = [{"role": "user", "content": "<image>\nDescribe."}, {"role": "assistant", "content": " A cat."}]
    record = {"image": "x", "messages": messages}
    assert [message["content"] for message in get_messages(record)] == ["Describe.", " A cat."]


def test_of_two_names_for_a_caption_the_one_with_a_value_counts():
    assert get_caption({"caption": None, "text": "hello"}) == "hello"
