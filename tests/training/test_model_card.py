"""The card and the record of a run; and what a stranger gets who follows the card of a pushed one."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import TrainerCallback

from aligngpt.__main__ import main
from aligngpt.training.history import TrainingHistory
from aligngpt.training.trainer import AlignGPTTrainer

from ..hub_server import LoopbackHub  # noqa: TID252


@pytest.fixture(scope="module")
def leveled(data, tmp_path_factory):
    """What `aligngpt levels` writes, as far as training looks at it."""
    folder = tmp_path_factory.mktemp("levels")
    pairs = [json.loads(line) for line in (data / "pairs.jsonl").read_text().splitlines()]
    (folder / "pairs.json").write_text(json.dumps(pairs))
    cuts = {"rule": "equal-frequency", "num_levels": 8, "cut_points": [0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.1749]}
    cuts |= {
        "count": 12,
        "scorer": "openai/clip-vit-large-patch14-336",
        "scorer_revision": "ce19dc912ca5cd21c8a653c79",
    }
    (folder / "alignment_levels.json").write_text(json.dumps(cuts))
    return folder


@pytest.fixture(scope="module")
def both_stages(run_pretrain, run_sft, leveled, tmp_path_factory):
    """The folder of a stage-2 run on a stage-1 run on levels."""
    folder = tmp_path_factory.mktemp("both")
    run_pretrain(folder / "stage1", "--train_file", leveled)
    run_sft(folder / "stage1", folder / "stage2", "--gate_learning_rate", "0.01")
    return folder / "stage2"


def read_card(folder):
    text = (folder / "README.md").read_text()
    return text, ModelCard(text).data


def test_the_card_tells_both_stages_and_the_levels(both_stages):
    text, metadata = read_card(both_stages)
    assert (metadata.pipeline_tag, metadata.library_name) == ("image-text-to-text", "transformers")
    assert {"aligngpt", "custom_code"} <= set(metadata.tags)
    first, second = text.split("### Stage 2")
    assert "| learning_rate | 0.005 |" in first and "| learning_rate | 0.003 |" in second
    assert "| gate_learning_rate | 0.01 |" in second and "| global_batch_size | 4 |" in second
    assert "(12 rows, 12 with images)" in first and "(12 rows, 8 with images)" in second
    assert "12 pairs by openai/clip-vit-large-patch14-336 (ce19dc912ca5)" in first
    assert "8 levels, equal-frequency, at 0.1100, 0.1200, 0.1300, 0.1400, 0.1500, 0.1600, 0.1749." in first
    assert "Trained: model.multi_modal_projector, model.alignment_embeddings." in first


def test_no_path_of_the_machine_is_in_what_is_published(both_stages):
    for path in (both_stages / "README.md", *both_stages.glob("*.json")):
        assert str(both_stages.parent.parent) not in path.read_text(), path.name


def test_checkpoints_have_the_record_too(run_sft, both_stages, tmp_path):
    run_sft(both_stages.parent / "stage1", tmp_path, "--save_strategy", "steps", "--save_steps", "2")
    stages = TrainingHistory.load(str(tmp_path / "checkpoint-2")).stages
    assert [stage["stage"] for stage in stages] == ["pretrain", "sft"]


def test_base_models_and_data_of_the_hub_are_in_the_metadata(tmp_path):
    stage = json.loads(json.dumps(EXAMPLE_STAGE)) | {"data": "liuhaotian/LLaVA-Pretrain"}
    TrainingHistory([stage]).save(tmp_path)
    sys.argv = ["aligngpt", "card", "--model", str(tmp_path), "--hub_model_id", "you/aligngpt-7b"]
    main()
    text, metadata = read_card(tmp_path)
    assert metadata.base_model == ["openai/clip-vit-large-patch14-336", "lmsys/vicuna-7b-v1.5"]
    assert metadata.datasets == ["liuhaotian/LLaVA-Pretrain"]
    assert text.count('"you/aligngpt-7b"') == 1 and "# aligngpt-7b\n" in text


EXAMPLE_STAGE = {
    "stage": "pretrain",
    "base_models": ["openai/clip-vit-large-patch14-336", "lmsys/vicuna-7b-v1.5"],
    "adapter": False,
    "data": "pairs.json",
    "trained": ["model.multi_modal_projector"],
    "config": {"num_alignment_levels": 8},
    "hyperparameters": {"learning_rate": 1e-3},
    "versions": {"aligngpt": "0.1.0"},
}


def test_the_card_of_an_adapter_says_so_from_the_first_checkpoint_on(run_sft, both_stages, tmp_path):
    cards = []

    class Read(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            cards.append(read_card(tmp_path)[1].library_name)

    arguments = ["--use_peft", "true", "--lora_r", "2", "--save_strategy", "steps", "--save_steps", "1"]
    original = AlignGPTTrainer.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            AlignGPTTrainer, "train", lambda self, **options: (self.add_callback(Read()), original(self, **options))
        )
        run_sft(both_stages.parent / "stage1", tmp_path, *arguments)
    assert cards == ["peft"] * 3 and read_card(tmp_path)[1].library_name == "peft"


def test_settings_that_are_zero_are_told_and_globs_are_no_data_sets(run_sft, both_stages, data, tmp_path):
    run_sft(both_stages.parent / "stage1", tmp_path, "--train_file", f"{data}/chats*.jsonl", "--seed", "0")
    text, metadata = read_card(tmp_path)
    assert "| weight_decay | 0.0 |" in text and "| seed | 0 |" in text
    assert metadata.datasets is None and "`chats*.jsonl`" in text


def test_a_table_that_was_drawn_anew_is_told(run_sft, both_stages, tmp_path):
    run_sft(both_stages.parent / "stage1", tmp_path, "--random_alignment_embeddings", "true")
    assert "| random_alignment_embeddings | True |" in read_card(tmp_path)[0]


def test_published_results_come_into_the_card(tmp_path, monkeypatch):
    TrainingHistory([EXAMPLE_STAGE]).save(tmp_path)
    (tmp_path / ".eval_results").mkdir()
    entry = {"dataset": {"id": "lmms-lab/POPE", "task_id": "pope"}, "value": 86.0}
    (tmp_path / ".eval_results" / "pope.yaml").write_text(yaml.safe_dump([entry]))
    monkeypatch.setattr(sys, "argv", ["aligngpt", "card", "--model", str(tmp_path)])
    main()
    assert "| lmms-lab/POPE | pope | 86.0 |" in read_card(tmp_path)[0]


def test_a_folder_that_no_stage_wrote_has_no_card(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["aligngpt", "card", "--model", str(checkpoint)])
    with pytest.raises(SystemExit):
        main()
    assert "has no training_stages.json" in capsys.readouterr().err


PICTURE = "http://images.cocodataset.org/val2017/000000039769.jpg"


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_a_stranger_who_follows_the_card_of_a_pushed_run_gets_answers(
    kind, both_stages, data, make_image, run_python, tmp_path
):
    """Stage 1 is pushed first; stage 2 starts from the Hub, and is pushed as a model or as an adapter."""
    make_image(0).save(tmp_path / "picture.png")
    script = [sys.executable, "-m", "aligngpt.training.sft", "--config", "sft_tiny_cpu", "--max_steps", "2"]
    script += ["--model_name_or_path", "tester/stage1", "--train_file", str(data / "chats.jsonl")]
    script += ["--image_folder", str(data), "--output_dir", str(tmp_path / "run"), "--push_to_hub", "true"]
    script += ["--hub_model_id", f"tester/{kind}", "--use_peft", str(kind == "adapter").lower()]
    push = "from huggingface_hub import HfApi\napi = HfApi()\napi.create_repo('tester/stage1')\n"
    push += f"api.upload_folder(repo_id='tester/stage1', folder_path={str(both_stages.parent / 'stage1')!r})"
    with LoopbackHub() as hub:
        writer = {**hub.env(token="write", cache=str(tmp_path / "writer")), "OMP_NUM_THREADS": "1"}
        run_python(push, tmp_path, writer)
        result = subprocess.run(script, env=writer, capture_output=True, text=True, cwd=tmp_path)
        assert result.returncode == 0, result.stdout + result.stderr
        files = hub.files(f"tester/{kind}")
        weights = "adapter_model.safetensors" if kind == "adapter" else "model.safetensors"
        assert {weights, "README.md", "training_stages.json", "processor_config.json"} <= files.keys()
        card = files["README.md"].decode()
        metadata = ModelCard(card).data
        assert metadata.base_model in ("tester/stage1", ["tester/stage1"])
        snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
        assert snippet.count(f'"tester/{kind}"') == 1
        reader = hub.env(token="read", cache=str(tmp_path / "reader"))
        assert snippet.count(PICTURE) == 1
        snippet = snippet.replace(PICTURE, str(tmp_path / "picture.png"))
        code = snippet if kind == "adapter" else "import sys; sys.modules['aligngpt'] = None\n" + snippet
        printed = run_python(code, tmp_path, reader)
    assert "What is this?" not in printed and "grad_fn" not in printed, "the answer alone"
