"""
Whole runs of `aligngpt score`: nothing is lost or scored twice, whatever happens.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from aligngpt.processing import AlignmentScorer, cut_into_levels
from aligngpt.processing.corpus.faults import Fault
from aligngpt.processing.scoring import preparation, run
from aligngpt.processing.scoring.arguments import ScoreArguments
from aligngpt.processing.scoring.run import score_corpus

from ...tolerance import rounding  # noqa: TID252


PAIRS = 50
CAPTIONS = ["two birds on a wire", "a red circle", "the quick brown fox jumps over the lazy dog", "a blue field"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, make_image):
    """50 pairs as LLaVA JSON with an image folder. Ids are not unique."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "images").mkdir()
    records = []
    for index in range(PAIRS):
        make_image(index, (30 + index, 40)).save(folder / "images" / f"{index}.jpg")
        answer = {"from": "gpt", "value": CAPTIONS[index % 4]}
        turns = [{"from": "human", "value": "Describe.\n<image>"}, answer]
        records.append({"id": f"pair {index % 7}", "image": f"{index}.jpg", "conversations": turns})
    (folder / "pairs.json").write_text(json.dumps(records))
    return folder


@pytest.fixture
def arguments(corpus, clip_scorer, tmp_path):
    """A function from arguments that differ to those of a run over the corpus."""

    def make(**changed) -> ScoreArguments:
        options = {"data": str(corpus / "pairs.json"), "image_folder": str(corpus / "images")}
        options |= {"scorer": str(clip_scorer), "output_dir": str(tmp_path / "scores"), "device": "cpu"}
        options |= {"num_workers": 0, "batch_size": 4, "rows_per_part": 8}
        return ScoreArguments(**(options | changed))

    return make


@pytest.fixture(scope="module")
def expected(corpus, clip_scorer):
    """The pairs' scores from memory, by (shard, row)."""
    images = [Image.open(corpus / "images" / f"{index}.jpg") for index in range(PAIRS)]
    captions = [CAPTIONS[index % 4] for index in range(PAIRS)]
    scores = AlignmentScorer(str(clip_scorer)).score(images, captions, batch_size=PAIRS)
    return {("pairs.json", row): score for row, score in enumerate(scores.tolist())}


def read_scores(folder) -> dict[tuple[str, int], float]:
    """Scores by (shard, row); a row that is there twice is an error."""
    rows = [row for file in sorted(os.listdir(folder)) if file.endswith(".parquet") for row in read(folder, file)]
    scores = {(row["shard"], row["row"]): row["alignment_score"] for row in rows}
    assert len(scores) == len(rows)
    return scores


def read(folder, file):
    return pq.read_table(os.path.join(folder, file)).to_pylist()


def assert_same(scores, expected):
    """The same pairs, each once, with the same scores and the same levels."""
    assert scores.keys() == expected.keys()
    scores, expected = [scores[key] for key in expected], list(expected.values())
    np.testing.assert_allclose(scores, expected, atol=rounding(1.0))
    difference = np.abs(cut_into_levels(scores, 8)[0] - cut_into_levels(expected, 8)[0]).max()
    # Scores are rounded to 1e-4, and only one as near to the middle of two steps as rounding reaches may go to either
    reach = np.abs(np.subtract(scores, expected)).max() * 1e4
    is_between = np.abs(np.array(expected) * 1e4 % 1 - 0.5) <= reach
    assert difference <= is_between.any()


def test_a_run_scores_every_pair_once_and_keeps_its_text(arguments, expected, tmp_path):
    report = score_corpus(arguments())
    assert_same(read_scores(tmp_path / "scores"), expected)
    assert (report["rows"], report["scored"], report["text_only"], report["listed"]) == (PAIRS, PAIRS, 0, 0)
    assert report["truncated_captions"] == sum(len(CAPTIONS[row % 4]) > 40 for row in range(PAIRS))
    row = read(tmp_path / "scores", "shard-00000-part-00001.parquet")[1]
    assert (row["id"], row["image"], row["caption"]) == ("pair 2", "9.jpg", "a red circle")
    assert row["messages"] == [
        {"role": "user", "content": "Describe.", "weight": None},
        {"role": "assistant", "content": "a red circle", "weight": None},
    ]


@pytest.mark.parametrize("changed", [{"num_workers": 2}, {"batch_size": 7}, {"rows_per_part": 1000}])
def test_workers_batches_and_parts_change_no_score(changed, arguments, expected, tmp_path):
    score_corpus(arguments(**changed))
    assert_same(read_scores(tmp_path / "scores"), expected)


def write_faulty_corpus(folder, make_image):
    """Records with every kind of fault and conversion, two of each, among good ones; returns the kinds by row."""
    images = folder / "images"
    images.mkdir()
    good = make_image(0, (40, 30))
    good.save(images / "good.png")
    good.save(folder / "outside.png")
    content = (images / "good.png").read_bytes()
    (images / "zero_sized.png").write_bytes(b"")
    (images / "corrupt.png").write_bytes(content[:600] + bytes(300) + content[900:])
    (images / "truncated.png").write_bytes(content[:-500])
    Image.new("1", (9500, 9500)).save(images / "bomb.png")
    Image.new("1", (1, 200_000)).save(images / "thin.png")
    good.save(images / "animated.webp", save_all=True, append_images=[make_image(1, (40, 30))])
    good.convert("CMYK").save(images / "cmyk.jpg")
    good.quantize(16).save(images / "palette.png")
    Image.fromarray(np.full((30, 40), 40_000, dtype=np.uint16)).save(images / "16-bit.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    good.save(images / "exif_rotated.jpg", exif=exif)
    record = {"image": "good.png", "caption": "a cat"}
    kinds = [
        ("missing", record | {"image": "no.png"}),
        ("outside_image_folder", record | {"image": "../outside.png"}),
        *((kind, record | {"image": f"{kind}.png"}) for kind in ("zero_sized", "corrupt", "truncated")),
        ("decompression_bomb", record | {"image": "bomb.png"}),
        ("extreme_shape", record | {"image": "thin.png"}),
        ("several_images", record | {"image": ["good.png", "good.png"]}),
        ("no_caption", {"image": "good.png"}),
        ("empty_caption", record | {"caption": " "}),
        ("non_string_caption", record | {"caption": 7}),
        ("malformed_record", ["not", "a", "record"]),
        ("malformed_record", record | {"caption": "half an emoji: \ud83d"}),
        *((None, record | {"image": image}) for image in ("animated.webp", "cmyk.jpg", "palette.png")),
        *((None, record | {"image": image}) for image in ("16-bit.png", "exif_rotated.jpg", "good.png")),
        ("text_only", {"caption": "no image at all"}),
    ]
    rows = [row for kind in kinds for row in (kind, (None, record), kind)]
    with open(folder / "faulty.jsonl", "w") as file:
        for index, (_, row) in enumerate(rows):
            file.write(json.dumps(row | {"id": f"id {index}"} if isinstance(row, dict) else row) + "\n")
    return [kind for kind, _ in rows]


def test_every_fault_is_listed_by_its_kind_and_the_report_adds_up(arguments, make_image, tmp_path):
    kinds = write_faulty_corpus(tmp_path, make_image)
    data = {"data": str(tmp_path / "faulty.jsonl"), "image_folder": str(tmp_path / "images")}
    report = score_corpus(arguments(**data))
    faults = [json.loads(line) for line in (tmp_path / "scores" / "faults.jsonl").read_text().splitlines()]
    expected = {row: kind for row, kind in enumerate(kinds) if kind not in (None, "text_only")}
    assert {fault["row"]: fault["kind"] for fault in faults} == expected
    assert all(fault["shard"] == "faulty.jsonl" and fault["message"] for fault in faults)
    assert [fault["id"] for fault in faults if fault["kind"] == "truncated"] == [
        f"id {row}" for row, kind in enumerate(kinds) if kind == "truncated"
    ]
    assert report["faults"] == Counter(expected.values())
    assert report["converted"] == dict.fromkeys(["animated", "cmyk", "palette", "16-bit", "exif_rotated"], 2)
    assert report["text_only"] == 2
    assert report["rows"] == len(kinds) == report["scored"] + report["text_only"] + report["listed"]
    scores = read_scores(tmp_path / "scores")
    assert scores.keys() == {("faulty.jsonl", row) for row in range(len(kinds)) if row not in expected}
    assert {row for (_, row), score in scores.items() if score is None} == {
        row for row, kind in enumerate(kinds) if kind == "text_only"
    }


def test_with_on_error_fail_the_first_fault_ends_the_run_and_is_named(arguments, make_image, tmp_path):
    write_faulty_corpus(tmp_path, make_image)
    data = {"data": str(tmp_path / "faulty.jsonl"), "image_folder": str(tmp_path / "images")}
    with pytest.raises(Fault, match=r"Row 0 of faulty.jsonl, id 0: There is no image 'no.png'"):
        score_corpus(arguments(**data, on_error="fail"))


def test_of_2000_pictures_with_40_broken_ones_each_is_accounted_for(arguments, tmp_path):
    (tmp_path / "images").mkdir()
    generator, broken = np.random.default_rng(0), set(range(17, 2000, 50))
    with open(tmp_path / "pairs.jsonl", "w") as file:
        for index in range(2000):
            path = tmp_path / "images" / f"{index}.jpg"
            Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
            if index in broken:
                content = path.read_bytes()
                path.write_bytes([content[:-100], b"", content[:20], b"junk" * 50][index // 50 % 4])
            file.write(json.dumps({"id": str(index), "image": path.name, "caption": f"number {index}"}) + "\n")
    data = {"data": str(tmp_path / "pairs.jsonl"), "image_folder": str(tmp_path / "images")}
    report = score_corpus(arguments(**data, batch_size=64, rows_per_part=None))
    faults = [json.loads(line) for line in (tmp_path / "scores" / "faults.jsonl").read_text().splitlines()]
    assert {int(fault["id"]) for fault in faults} == broken
    assert report["faults"] == {"corrupt": 20, "truncated": 10, "zero_sized": 10}
    assert report["scored"] + report["listed"] == 2000 and len(read_scores(tmp_path / "scores")) == 1960


def test_killed_in_the_middle_and_continued_the_scores_are_those_of_one_run(arguments, expected, tmp_path):
    args = arguments(rows_per_part=2, batch_size=2, num_workers=1)
    command = [sys.executable, "-m", "aligngpt", "score"]
    for name in ("data", "image_folder", "scorer", "output_dir", "device", "num_workers", "batch_size"):
        command += [f"--{name}", str(getattr(args, name))]
    command += ["--rows_per_part", "2"]
    slow = "import aligngpt.processing.scoring.scorer as a, time\nembed = a.AlignmentScorer._embed\n"
    slow += "a.AlignmentScorer._embed = lambda *inputs: (time.sleep(0.1), embed(*inputs))[1]\n"
    slow += "import sys; from aligngpt.__main__ import main; main()"  # slow enough to be met in the middle
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *command[3:]], env=environment, start_new_session=True, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "scores" / "shard-00000-part-00004.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    there = set(os.listdir(tmp_path / "scores"))
    assert "score_report.json" not in there and "shard-00000-part-00020.json" not in there
    before = {name: os.stat(tmp_path / "scores" / name).st_mtime_ns for name in there if name.endswith(".json")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "50 rows: 50 scored" in result.stderr
    assert_same(read_scores(tmp_path / "scores"), expected)
    # What was whole was not scored again
    assert all(os.stat(tmp_path / "scores" / name).st_mtime_ns == when for name, when in before.items())


def test_stopped_at_any_write_a_run_goes_on_without_loss(arguments, expected, tmp_path, monkeypatch):
    replace = os.replace
    reports, stops = [], 0

    def replace_until_stopped(source, target):
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_until_stopped)
    while not reports:
        left = 2  # two files get through, then the run is gone
        try:
            reports.append(score_corpus(arguments()))
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 8
    assert_same(read_scores(tmp_path / "scores"), expected)
    assert reports[0]["scored"] == PAIRS
    assert not [name for name in os.listdir(tmp_path / "scores") if name.startswith(".")]


def be_process(monkeypatch, process, processes):
    """Makes the next runs those of one process of several."""
    state = {"process_index": process, "num_processes": processes, "is_local_main_process": process == 0}
    state = SimpleNamespace(device=torch.device("cpu"), **state)
    monkeypatch.setattr(run, "PartialState", lambda **_: state)


@pytest.mark.parametrize("lone", [(0, 3), (1, 3), (2, 3), (1, 2)])
def test_what_some_of_several_processes_left_undone_another_number_finishes(
    lone, arguments, expected, tmp_path, monkeypatch
):
    be_process(monkeypatch, *lone)
    assert score_corpus(arguments(rows_per_part=4)) is None
    be_process(monkeypatch, 0, 1)
    assert score_corpus(arguments(rows_per_part=4))["scored"] == PAIRS
    assert_same(read_scores(tmp_path / "scores"), expected)


def split_into_shards(corpus, folder):
    """The corpus as five JSON Lines files."""
    folder.mkdir()
    records = json.loads((corpus / "pairs.json").read_text())
    for shard in range(5):
        lines = [json.dumps(record) for record in records[10 * shard : 10 * (shard + 1)]]
        (folder / f"{shard}.jsonl").write_text("\n".join(lines))
    return {(f"{row // 10}.jsonl", row % 10): row for row in range(len(records))}


@pytest.mark.parametrize(("shards", "processes"), [(1, 2), (1, 3), (1, 20), (5, 1), (5, 2), (5, 5), (5, 7)])
def test_processes_share_the_pairs_whatever_their_order(
    shards, processes, arguments, corpus, expected, tmp_path, monkeypatch
):
    changed = {"rows_per_part": 4}
    if shards == 5:
        rows = split_into_shards(corpus, tmp_path / "shards")
        expected = {key: expected["pairs.json", row] for key, row in rows.items()}
        changed["data"] = str(tmp_path / "shards" / "*.jsonl")
    reports = []
    for process in reversed(range(processes)):  # the first one last: it waits for nobody, nobody for it
        be_process(monkeypatch, process, processes)
        reports.append(score_corpus(arguments(**changed)))
    assert reports[-1]["scored"] == PAIRS and reports[:-1] == [None] * (processes - 1)
    assert_same(read_scores(tmp_path / "scores"), expected)


def test_two_processes_of_torchrun_score_what_one_does(arguments, corpus, expected, tmp_path):
    rows = split_into_shards(corpus, tmp_path / "shards")
    args = arguments(data=str(tmp_path / "shards" / "*.jsonl"), num_workers=1)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "aligngpt", "score"]
    for name in ("data", "image_folder", "scorer", "output_dir", "num_workers", "batch_size"):
        command += [f"--{name}", str(getattr(args, name))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Scoring (1 of 2): 100%" in result.stderr and "30/30" in result.stderr
    assert_same(read_scores(tmp_path / "scores"), {key: expected["pairs.json", row] for key, row in rows.items()})
    assert json.loads((tmp_path / "scores" / "score_report.json").read_text())["scored"] == PAIRS


@pytest.fixture(scope="module")
def parquet(corpus, tmp_path_factory):
    """The corpus as one parquet file with the images' bytes."""
    path = tmp_path_factory.mktemp("parquet") / "pairs.parquet"
    files = [corpus / "images" / f"{index}.jpg" for index in range(PAIRS)]
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    captions = [CAPTIONS[index % 4] for index in range(PAIRS)]
    data = datasets.Dataset.from_dict({"image": images, "text": captions})
    data.cast_column("image", datasets.Image()).to_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["path", "in memory", "streaming"])
def test_a_dataset_scores_alike_in_memory_and_streaming(kind, arguments, parquet, expected, tmp_path):
    dataset = None
    if kind != "path":
        dataset = datasets.load_dataset(
            "parquet", data_files=str(parquet), split="train", streaming=kind == "streaming"
        )
    score_corpus(arguments(data=str(parquet)), dataset)
    scores = read_scores(tmp_path / "scores")
    assert_same({("pairs.json", row): score for (_, row), score in scores.items()}, expected)


@pytest.mark.parametrize("keep_images", [True, False])
def test_images_inside_the_data_are_inside_the_output_unless_left_out(keep_images, arguments, parquet, tmp_path):
    score_corpus(arguments(data=str(parquet), image_folder=None, keep_images=keep_images))
    there = pq.read_table(parquet).to_pylist()
    out = read(tmp_path / "scores", "shard-00000-part-00000.parquet")
    content = [row["image"]["bytes"] for row in there[:8]] if keep_images else [None] * 8
    assert [row["image"]["bytes"] for row in out] == content
    assert [row["image"]["path"] for row in out] == [f"{index}.jpg" for index in range(8)]


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"rows_per_part": 5}, "rows_per_part"), ({"dtype": "bfloat16"}, "dtype"), ({"data": "other"}, "shards")],
)
def test_a_folder_of_another_run_is_not_continued(changed, named, arguments, corpus, tmp_path):
    score_corpus(arguments())
    if "data" in changed:
        shutil.copy(corpus / "pairs.json", tmp_path / "other.json")
        (tmp_path / "other.json").write_text((corpus / "pairs.json").read_text() + " ")
        changed = {"data": str(tmp_path / "other.json")}
    with pytest.raises(ValueError, match=f"another run: it differs in .*{named}"):
        score_corpus(arguments(**changed))


def test_a_score_that_is_not_finite_is_an_error_that_names_the_pair(arguments, clip_scorer, tmp_path):
    model = AutoModel.from_pretrained(clip_scorer)
    torch.nn.init.constant_(model.visual_projection.weight, float("nan"))
    shutil.copytree(clip_scorer, tmp_path / "overflowing")
    model.save_pretrained(tmp_path / "overflowing")
    with pytest.raises(FloatingPointError, match="row 0 of pairs.json, pair 0, is nan"):
        score_corpus(arguments(scorer=str(tmp_path / "overflowing")))


def test_paths_without_an_image_folder_are_an_error_not_a_list_of_faults(arguments):
    with pytest.raises(ValueError, match="image folder"):
        score_corpus(arguments(image_folder=None))


def test_an_image_folder_that_is_not_there_is_an_error(arguments):
    with pytest.raises(ValueError, match="no image folder 'imag'"):
        score_corpus(arguments(image_folder="imag"))


@pytest.mark.parametrize("changed", [{"rows_per_part": 0}, {"batch_size": -1}])
def test_sizes_below_one_are_refused(changed, arguments):
    with pytest.raises(ValueError, match="at least 1"):
        score_corpus(arguments(**changed))


def test_what_was_missing_is_scored_on_demand_when_it_is_there(arguments, corpus, expected, tmp_path):
    shutil.copytree(corpus / "images", tmp_path / "images")
    (tmp_path / "images" / "17.jpg").rename(tmp_path / "away")
    args = {"image_folder": str(tmp_path / "images")}
    assert score_corpus(arguments(**args))["faults"] == {"missing": 1}
    (tmp_path / "away").rename(tmp_path / "images" / "17.jpg")
    assert score_corpus(arguments(**args))["faults"] == {"missing": 1}
    assert score_corpus(arguments(**args, retry_missing=True))["faults"] == {}
    assert_same(read_scores(tmp_path / "scores"), expected)


def test_what_nobody_thought_of_is_a_fault_of_one_pair(arguments, corpus, tmp_path, monkeypatch):
    open_image = preparation.open_image

    def stumble(source, folder):
        if source == "3.jpg":
            raise ZeroDivisionError("who knows")
        return open_image(source, folder)

    monkeypatch.setattr(preparation, "open_image", stumble)
    report = score_corpus(arguments())
    assert report["faults"] == {"unexpected": 1} and report["scored"] == PAIRS - 1
    assert "ZeroDivisionError: who knows" in (tmp_path / "scores" / "faults.jsonl").read_text()


def test_half_a_character_in_an_id_is_listed(arguments, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "x\\ud83d", "image": "0.jpg", "caption": "a"}\n')
    report = score_corpus(arguments(data=str(tmp_path / "a.jsonl")))
    assert report["faults"] == {"malformed_record": 1}
    assert json.loads((tmp_path / "scores" / "faults.jsonl").read_text())["id"] == "x\ud83d"


def test_images_of_several_forms_in_one_corpus_are_scored(arguments, corpus, expected, tmp_path):
    (tmp_path / "mix").mkdir()
    lines = [{"image": "0.jpg", "caption": CAPTIONS[0]}, {"image": {"path": "1.jpg"}, "caption": CAPTIONS[1]}]
    (tmp_path / "mix" / "a.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    with tarfile.open(tmp_path / "mix" / "b.tar", "w") as archive:
        archive.add(corpus / "images" / "2.jpg", "2.jpg")
        (tmp_path / "caption").write_text(CAPTIONS[2])
        archive.add(tmp_path / "caption", "2.txt")
    rows = {"photo": [str(corpus / "images" / "3.jpg")], "text": [CAPTIONS[3]], "md5": [b"x"]}
    score_corpus(arguments(data=str(tmp_path / "mix" / "*")))
    scores = list(read_scores(tmp_path / "scores").values())
    np.testing.assert_allclose(scores, [expected["pairs.json", row] for row in range(3)], atol=rounding(1.0))
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "c.parquet")
    changed = {"data": str(tmp_path / "c.parquet"), "image_column": "photo", "image_folder": "/"}
    score_corpus(arguments(**changed, output_dir=str(tmp_path / "c")))
    assert list(read_scores(tmp_path / "c").values()) == pytest.approx([expected["pairs.json", 3]], abs=rounding(1.0))


def test_a_streamed_dataset_that_was_filtered_is_scored(arguments, parquet, expected, tmp_path):
    dataset = datasets.load_dataset("parquet", data_files=str(parquet), split="train", streaming=True)
    dataset = dataset.map(lambda row: row).filter(lambda row: row["text"] == CAPTIONS[1])
    score_corpus(arguments(), dataset)
    scores = list(read_scores(tmp_path / "scores").values())
    np.testing.assert_allclose(scores, [expected["pairs.json", row] for row in range(1, PAIRS, 4)], atol=rounding(1.0))


def test_a_scorer_is_the_same_wherever_its_folder_is(arguments, clip_scorer, tmp_path):
    report = score_corpus(arguments())
    shutil.copytree(clip_scorer, tmp_path / clip_scorer.name)
    assert score_corpus(arguments(scorer=str(tmp_path / clip_scorer.name) + "/")) == report


def test_workers_can_be_spawned(clip_scorer, corpus, run_python, tmp_path):
    code = f"""
import torch.multiprocessing as multiprocessing
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    from aligngpt.processing import AlignmentScorer
    scorer = AlignmentScorer({str(clip_scorer)!r}, device="cpu")
    print(len(scorer.score([{str(corpus / "images" / "0.jpg")!r}] * 3, ["a"] * 3, num_workers=1)))
"""
    (tmp_path / "spawn.py").write_text(code)
    result = subprocess.run([sys.executable, str(tmp_path / "spawn.py")], capture_output=True, text=True)
    assert result.stdout.strip() == "3", result.stderr
