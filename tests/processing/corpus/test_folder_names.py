"""Folders whose names look like globs, or have spaces and letters of other alphabets, are folders like any other."""

import json

import datasets
import pytest

from aligngpt.processing.corpus.sources import open_corpus
from aligngpt.processing.levels.arguments import LevelArguments
from aligngpt.processing.levels.cutting import cut_corpus
from aligngpt.processing.scoring.arguments import ScoreArguments
from aligngpt.processing.scoring.run import score_corpus
from aligngpt.training.collator import AlignGPTDataCollator
from aligngpt.training.data import load_training_data


RECORDS = [{"id": str(index), "image": f"{index} [a].png", "caption": f"picture {index}"} for index in range(4)]


@pytest.fixture(params=["a [b] ü c", "a*b?", "[!x]", "图 片"])
def folder(request, tmp_path):
    """A folder with an odd name, and beside it one that its name matches if it is taken for a glob."""
    (tmp_path / "a b ü c").mkdir()
    (tmp_path / request.param / "inner [0-9]").mkdir(parents=True)
    return tmp_path / request.param / "inner [0-9]"


def ids_of(data):
    return [str(row["id"]) for shard in open_corpus(str(data)) for row in shard.read(0)]


@pytest.mark.parametrize("file_format", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("name", ["data [1].{}", "*.{}", "**/*.{}", ""])
def test_tables_are_found_by_name_by_glob_and_by_folder(folder, file_format, name):
    dataset = datasets.Dataset.from_list(RECORDS)
    writers = {"jsonl": dataset.to_json, "parquet": dataset.to_parquet, "csv": dataset.to_csv}
    writers[file_format](folder / f"data [1].{file_format}")
    assert ids_of(folder / name.format(file_format)) == ["0", "1", "2", "3"]


def test_a_relative_path_starts_where_the_user_stands(folder, monkeypatch):
    datasets.Dataset.from_list(RECORDS).to_parquet(folder / "data.parquet")
    monkeypatch.chdir(folder.parent)
    for data in (folder.name, f"{folder.name}/*.parquet", f"./{folder.name}/data.parquet"):
        assert ids_of(data) == ["0", "1", "2", "3"]


def test_splits_are_told_by_the_files_names(folder):
    for split in ("train", "test"):
        datasets.Dataset.from_list([{"id": split}]).to_parquet(folder / f"{split}.parquet")
    rows = [row for shard in open_corpus(str(folder), split="test") for row in shard.read(0)]
    assert rows == [{"id": "test"}]


def test_a_folder_of_images_and_a_saved_dataset_are_read(folder, make_image):
    (folder / "images").mkdir()
    make_image(0).save(folder / "images" / "x [1].png")
    (folder / "images" / "metadata.jsonl").write_text(json.dumps({"file_name": "x [1].png", "text": "a bird"}))
    (row,) = (row for shard in open_corpus(str(folder / "images")) for row in shard.read(0))
    assert row["text"] == "a bird" and row["image"]["bytes"]
    datasets.Dataset.from_list(RECORDS).save_to_disk(folder / "saved")
    assert ids_of(folder / "saved") == ["0", "1", "2", "3"]


def test_pairs_are_scored_cut_into_levels_and_trained_on(folder, clip_scorer, make_image, processor):
    (folder / "images").mkdir()
    for index, record in enumerate(RECORDS):
        make_image(index).save(folder / "images" / record["image"])
    (folder / "data.json").write_text(json.dumps(RECORDS))
    images, scores, levels = (str(folder / name) for name in ("images", "scores", "levels"))
    options = {"scorer": str(clip_scorer), "image_folder": images, "device": "cpu", "num_workers": 0}
    score_corpus(ScoreArguments(data=str(folder / "data.json"), output_dir=scores, **options))
    for form in ("parquet", "llava-json"):
        cut_corpus(LevelArguments(data=scores, output_dir=levels + form, num_levels=2, to=form))
        rows = load_training_data(levels + form)
        assert sorted(rows["id"]) == ["0", "1", "2", "3"] and sorted(rows["alignment_level"]) == [0, 0, 1, 1]
        batch = AlignGPTDataCollator(processor, num_alignment_levels=2, image_folder=images)(list(rows))
        assert len(batch["pixel_values"]) == 4
