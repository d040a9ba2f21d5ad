"""
Whole runs of `aligngpt levels`: every scored pair gets its level, and the data of stage 1 comes out.
"""

import json
import os

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aligngpt.processing import LevelCuts
from aligngpt.processing.levels.arguments import LevelArguments
from aligngpt.processing.levels.cutting import cut_corpus
from aligngpt.processing.scoring.arguments import ScoreArguments
from aligngpt.processing.scoring.run import score_corpus
from aligngpt.training.collator import AlignGPTDataCollator
from aligngpt.training.data import load_training_data


PAIRS = 41


def score(data, clip_scorer, output_dir, **changed) -> str:
    options = {"device": "cpu", "num_workers": 0, "rows_per_part": 6} | changed
    score_corpus(ScoreArguments(data=str(data), scorer=str(clip_scorer), output_dir=str(output_dir), **options))
    return str(output_dir)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, make_image):
    """41 pairs in two JSON Lines files with an image folder, and a text-only record."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "images").mkdir()
    records = []
    for index in range(PAIRS):
        make_image(index, (30, 40)).save(folder / "images" / f"{index}.png")
        turns = [{"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": f"number {index % 5}"}]
        records.append({"id": str(index), "image": f"{index}.png", "conversations": turns})
    records.insert(9, {"id": "text", "caption": "no image"})
    for name, part in (("a", records[:20]), ("b", records[20:])):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(record) for record in part))
    return folder


@pytest.fixture(scope="module")
def scores(corpus, clip_scorer, tmp_path_factory):
    """The folder of the corpus's scores."""
    output_dir = tmp_path_factory.mktemp("scored") / "scores"
    return score(corpus / "*.jsonl", clip_scorer, output_dir, image_folder=str(corpus / "images"))


@pytest.fixture
def cut(scores, tmp_path):
    """A function that cuts the scores and returns the rows of the output."""

    def run(output="levels", **changed) -> list[dict]:
        cut_corpus(LevelArguments(**({"data": scores, "output_dir": str(tmp_path / output)} | changed)))
        return read_rows(tmp_path / output)

    return run


def read_rows(folder) -> list[dict]:
    files = sorted(name for name in os.listdir(folder) if name.endswith(".parquet"))
    return [row for name in files for row in pq.read_table(folder / name).to_pylist()]


def scored(rows):
    return [row for row in rows if row["alignment_score"] is not None]


@pytest.mark.parametrize("num_levels", [2, 8, 10])
def test_levels_are_equal_shares_of_the_ranks_over_all_files(num_levels, cut, tmp_path):
    rows = cut(num_levels=num_levels)
    assert len(rows) == PAIRS + 1
    ranked = sorted(scored(rows), key=lambda row: (round(row["alignment_score"], 4), row["shard"], row["row"]))
    expected = [rank * num_levels // PAIRS for rank in range(PAIRS)]
    assert [row["alignment_level"] for row in ranked] == expected
    cuts = LevelCuts.load(tmp_path / "levels" / "alignment_levels.json")
    lowest = [
        min(row["alignment_score"] for row in ranked if row["alignment_level"] == level)
        for level in range(1, num_levels)
    ]
    assert (cuts.rule, cuts.num_levels, cuts.count) == ("equal-frequency", num_levels, PAIRS)
    np.testing.assert_allclose(cuts.cut_points, lowest, atol=5.1e-5)


def test_equal_width_levels_cut_the_range_evenly(cut):
    rows = scored(cut(num_levels=4, rule="equal-width"))
    values = np.array([round(row["alignment_score"], 4) for row in rows])
    edges = values.min() + (values.max() - values.min()) * np.array([0.25, 0.5, 0.75])
    assert [row["alignment_level"] for row in rows] == [int((value >= edges.round(4)).sum()) for value in values]


def test_everything_else_is_handed_through(cut, scores):
    parts = [row for name in sorted(os.listdir(scores)) if name.endswith(".parquet") for row in read(scores, name)]
    rows = cut()
    assert [{name: row[name] for name in row if name != "alignment_level"} for row in rows] == parts
    (text_only,) = (row for row in rows if row["id"] == "text")
    assert text_only["alignment_level"] is None and text_only["caption"] == "no image"


def read(folder, name):
    return pq.read_table(os.path.join(folder, name)).to_pylist()


def test_old_cut_points_bucket_new_data(cut, corpus, clip_scorer, tmp_path):
    old = cut(num_levels=5)
    cuts = LevelCuts.load(tmp_path / "levels" / "alignment_levels.json")
    new = score(corpus / "b.jsonl", clip_scorer, tmp_path / "new", image_folder=str(corpus / "images"))
    rows = cut("applied", data=new, apply=str(tmp_path / "levels" / "alignment_levels.json"))
    expected = [sum(round(row["alignment_score"], 4) >= cut for cut in cuts.cut_points) for row in scored(rows)]
    assert [row["alignment_level"] for row in scored(rows)] == expected
    assert expected == [row["alignment_level"] for row in scored(old) if row["shard"] == "b.jsonl"]
    written = LevelCuts.load(tmp_path / "applied" / "alignment_levels.json")
    assert (written.cut_points, written.count) == (cuts.cut_points, len(expected))


def test_cut_points_of_another_scorer_are_refused(cut, tmp_path):
    LevelCuts("equal-frequency", 2, [0.2], 9, scorer="openai/other").save(tmp_path / "cuts.json")
    with pytest.raises(ValueError, match="they do not compare"):
        cut(apply=str(tmp_path / "cuts.json"))


def test_random_levels_come_from_the_seed_alone(cut, corpus, clip_scorer, tmp_path):
    first, again, other = (
        [row["alignment_level"] for row in scored(cut(name, random=seed))]
        for name, seed in (("first", 3), ("again", 3), ("other", 4))
    )
    images = str(corpus / "images")
    parts = score(corpus / "*.jsonl", clip_scorer, tmp_path / "parts", image_folder=images, rows_per_part=17)
    assert first == again == [row["alignment_level"] for row in scored(cut("parts_cut", data=parts, random=3))]
    assert first != other and set(first) == set(range(8))
    written = json.loads((tmp_path / "first" / "alignment_levels.json").read_text())
    assert (written["rule"], written["seed"], written["cut_points"]) == ("random", 3, [])


def test_lower_levels_are_left_out_on_demand(cut):
    rows, high = cut(), cut("high", min_level=6)
    assert high == [row for row in rows if row["alignment_level"] in (None, 6, 7)]
    assert len(scored(high)) in (10, 11)


def test_llava_json_comes_out_and_goes_in_again(cut, tmp_path):
    rows = cut()
    cut("json", to="llava-json")
    records = json.loads((tmp_path / "json" / "pairs.json").read_text())
    assert [record["id"] for record in records] == [row["id"] for row in rows]
    assert records[0]["conversations"] == [
        {"from": "human", "value": "<image>\nDescribe."},
        {"from": "gpt", "value": "number 0"},
    ]
    assert records[0]["similarity"] == records[0]["alignment_level"] == rows[0]["alignment_level"]
    assert "image" not in records[9] and "similarity" not in records[9]
    for record in records:  # the authors' file has no scores
        for name in ("alignment_score", "alignment_level"):
            record.pop(name, None)
    (tmp_path / "authors.json").write_text(json.dumps(records))
    given = cut("given", data=str(tmp_path / "authors.json"))
    assert [row["alignment_level"] for row in given] == [row["alignment_level"] for row in rows]
    assert json.loads((tmp_path / "given" / "alignment_levels.json").read_text())["rule"] == "given"


@pytest.mark.parametrize(
    ("level", "message"),
    [(8, "level of x is 8; the levels are 0..7"), (-1, "level of x is -1"), (0.27, "0.27, not an integer")],
)
def test_a_given_level_out_of_range_is_named(level, message, cut, tmp_path):
    records = [{"id": "a", "image": "a.png", "caption": "a", "similarity": 3}]
    records.append({"id": "x", "image": "x.png", "caption": "x", "similarity": level})
    (tmp_path / "authors.json").write_text(json.dumps(records))
    with pytest.raises(ValueError, match=message):
        cut(data=str(tmp_path / "authors.json"))
    assert os.listdir(tmp_path) == ["authors.json"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_levels": 42}, "41 scores cannot be cut into 42 levels"),
        ({"random": 1, "apply": "x.json"}, "not both"),
        ({"num_levels": 1}, "at least two levels"),
    ],
)
def test_what_cannot_be_cut_is_refused_and_leaves_nothing(changed, message, cut, tmp_path):
    with pytest.raises(ValueError, match=message):
        cut(**changed)
    assert os.listdir(tmp_path) == []


def test_scores_that_are_not_complete_are_refused(corpus, clip_scorer, scores, cut, tmp_path):
    for name in os.listdir(scores):
        if name != "shard-00001-part-00001.json":
            os.makedirs(tmp_path / "some", exist_ok=True)
            os.link(os.path.join(scores, name), tmp_path / "some" / name)
    with pytest.raises(ValueError, match="not complete"):
        cut(data=str(tmp_path / "some"))


def test_a_folder_with_something_in_it_is_not_written_over(cut, tmp_path):
    (tmp_path / "levels").mkdir()
    (tmp_path / "levels" / "precious").write_text("x")
    with pytest.raises(FileExistsError, match="there already"):
        cut()
    assert os.listdir(tmp_path / "levels") == ["precious"]


def test_the_sheet_shows_pairs_of_each_level_in_its_row(clip_scorer, cut, tmp_path):
    colours = [(255, 0, 0), (0, 200, 0), (0, 0, 255), (250, 250, 0)]
    for index, colour in enumerate(colours):
        Image.new("RGB", (30, 30), colour).save(tmp_path / f"{index}.png")
    records = [{"image": f"{index % 4}.png", "caption": "$x_ {%", "similarity": index % 4} for index in range(12)]
    (tmp_path / "authors.json").write_text(json.dumps(records))
    options = {"data": str(tmp_path / "authors.json"), "num_levels": 4, "samples_per_level": 3}
    cut(**options, image_folder=str(tmp_path))
    sheet = np.asarray(Image.open(tmp_path / "levels" / "samples.png").convert("RGB")).astype(int)
    height = len(sheet) // 4
    for row in range(4):
        band = sheet[row * height : (row + 1) * height].reshape(-1, 3)
        shown = [(np.abs(band - colour).max(axis=1) < 8).mean() > 0.1 for colour in colours]
        assert shown == [index == row for index in range(4)]


def test_the_histogram_has_a_line_at_each_cut(cut, tmp_path):
    cut(num_levels=6)
    picture = np.asarray(Image.open(tmp_path / "levels" / "levels.png").convert("RGB")).astype(int)
    red = (picture[..., 0] > 180) & (picture[..., 1] < 110) & (picture[..., 2] < 110)
    columns = np.flatnonzero(red.mean(axis=0) > 0.5)
    assert 1 + (np.diff(columns) > 3).sum() == 5


def test_stage_1_takes_the_output_as_it_is(cut, corpus, processor, tmp_path):
    rows = cut()
    data = load_training_data(str(tmp_path / "levels"))
    assert [row["alignment_level"] for row in data] == [
        -1 if row["alignment_level"] is None else row["alignment_level"] for row in rows
    ]
    collator = AlignGPTDataCollator(
        processor, chat_template="plain", num_alignment_levels=8, image_folder=str(corpus / "images")
    )
    batch = collator([data[index] for index in (0, 9, 40)])  # the second is text-only
    assert batch["alignment_levels"].tolist() == [data[0]["alignment_level"], -1, data[40]["alignment_level"]]
    assert len(batch["pixel_values"]) == 2


def test_stage_1_takes_images_from_inside_the_output(cut, corpus, clip_scorer, processor, tmp_path):
    files = [corpus / "images" / f"{index}.png" for index in range(10)]
    data = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
            "text": [file.name for file in files],
        }
    )
    data.cast_column("image", datasets.Image()).to_parquet(tmp_path / "pairs.parquet")
    cut(data=score(tmp_path / "pairs.parquet", clip_scorer, tmp_path / "inside"), num_levels=2)
    data = load_training_data(str(tmp_path / "levels"))
    for row, file in zip(data, files, strict=True):
        assert row["images"][0]["bytes"] == file.read_bytes()
    batch = AlignGPTDataCollator(processor=processor, chat_template="plain", num_alignment_levels=2)(list(data))
    assert batch["alignment_levels"].bincount().tolist() == [5, 5] and len(batch["pixel_values"]) == 10
    with pytest.raises(ValueError, match="--to parquet"):
        cut("json", data=str(tmp_path / "inside"), num_levels=2, to="llava-json")
    assert {"json", ".json.unfinished"}.isdisjoint(os.listdir(tmp_path))


@pytest.mark.parametrize("key", ["similarity", "alignment_score"])
def test_a_level_or_score_never_goes_to_another_pair(key, cut, tmp_path):
    records = [
        {"id": "A", "image": "0.png", "caption": "a"},
        {"id": "B", "caption": "b", key: 1},
        {"id": "C", "image": "1.png", "caption": "c", key: 1},
    ]
    (tmp_path / "some.json").write_text(json.dumps(records))
    with pytest.raises(ValueError, match="A has an image, but no|cannot be cut"):
        cut(data=str(tmp_path / "some.json"), num_levels=2)


def test_given_levels_are_kept_unless_others_are_asked_for(cut, tmp_path):
    rows = cut("json", to="llava-json", min_level=4) or json.loads((tmp_path / "json" / "pairs.json").read_text())
    levels = [row["alignment_level"] for row in rows if "alignment_level" in row]
    again = scored(cut("again", data=str(tmp_path / "json" / "pairs.json")))
    assert [row["alignment_level"] for row in again] == levels and min(levels) == 4
    anew = scored(cut("anew", data=str(tmp_path / "json" / "pairs.json"), rule="equal-frequency", num_levels=2))
    assert sorted({row["alignment_level"] for row in anew}) == [0, 1]
    assert json.loads((tmp_path / "json" / "alignment_levels.json").read_text())["min_level"] == 4


def test_datasets_loads_the_folder_as_what_it_is(cut, tmp_path):
    rows = cut()
    loaded = datasets.load_dataset(str(tmp_path / "levels"), split="train")
    assert loaded["alignment_level"][:] == [row["alignment_level"] for row in rows]


def test_stage_1_takes_llava_json_from_its_folder(cut, corpus, tmp_path):
    rows = cut()
    cut("json", to="llava-json")
    data = load_training_data(str(tmp_path / "json"))
    assert data["id"][:] == [row["id"] for row in rows]


def test_a_picture_that_cannot_be_drawn_costs_no_data(cut, tmp_path, monkeypatch):
    monkeypatch.setattr("aligngpt.processing.levels.pictures.draw_samples", lambda *_: 1 / 0)
    assert len(cut()) == PAIRS + 1


def test_old_cut_points_on_data_without_a_score_are_no_obstacle(cut, corpus, clip_scorer, tmp_path):
    cut()
    (tmp_path / "text.jsonl").write_text('{"id": "a", "caption": "no image"}\n')
    texts = score(tmp_path / "text.jsonl", clip_scorer, tmp_path / "texts")
    (row,) = cut("applied", data=texts, apply=str(tmp_path / "levels" / "alignment_levels.json"))
    assert row["alignment_level"] is None
