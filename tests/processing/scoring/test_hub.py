"""A corpus and a scorer on the Hub: scored downloaded and streamed, as from disk."""

import json

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from aligngpt.processing import AlignmentScorer

from ...hub_server import LoopbackHub  # noqa: TID252
from ...tolerance import rounding  # noqa: TID252


CODE = """
from huggingface_hub import HfApi
from aligngpt.processing.scoring.arguments import ScoreArguments
from aligngpt.processing.scoring.run import score_corpus

api = HfApi()
api.create_repo("pairs", repo_type="dataset", private=True)
api.upload_folder(repo_id="tester/pairs", folder_path="data", repo_type="dataset")
api.create_repo("scorer", private=True)
commit = api.upload_folder(repo_id="tester/scorer", folder_path=SCORER).oid
for streaming in (False, True):
    options = {"streaming": streaming, "output_dir": f"scores_{streaming}", "device": "cpu", "rows_per_part": 4}
    report = score_corpus(ScoreArguments(data="tester/pairs", scorer="tester/scorer", **options))
    assert report["scorer_revision"] == commit, report
"""


@pytest.fixture
def pictures(make_image):
    return [make_image(seed, (30 + seed, 25)) for seed in range(10)]


def test_a_hub_dataset_is_scored_by_a_hub_model_streaming_or_not(pictures, clip_scorer, run_python, tmp_path):
    (tmp_path / "data").mkdir()
    captions = [f"picture {index}" for index in range(10)]
    for shard, rows in enumerate((slice(0, 7), slice(7, 10))):
        data = datasets.Dataset.from_dict({"image": pictures[rows], "text": captions[rows]})
        data.cast_column("image", datasets.Image()).to_parquet(
            tmp_path / "data" / f"train-{shard:05d}-of-00002.parquet"
        )
    expected = AlignmentScorer(str(clip_scorer)).score(pictures, captions)
    with LoopbackHub() as hub:
        environment = hub.env(token="write", cache=tmp_path / "home")
        run_python(CODE.replace("SCORER", repr(str(clip_scorer))), tmp_path, environment)
    for folder in ("scores_False", "scores_True"):
        files = sorted((tmp_path / folder).glob("*.parquet"))
        rows = [row for file in files for row in pq.read_table(file).to_pylist()]
        np.testing.assert_allclose([row["alignment_score"] for row in rows], expected, atol=rounding(1.0))
        assert {row["shard"] for row in rows} == {f"train-0000{shard}-of-00002.parquet" for shard in range(2)}
        assert json.loads((tmp_path / folder / "score_report.json").read_text())["scored"] == 10
