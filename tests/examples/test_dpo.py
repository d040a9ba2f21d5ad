"""The DPO example."""

import runpy
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from trl import DPOConfig, ModelConfig, ScriptArguments, TrlParser

from aligngpt import AlignGPTForConditionalGeneration


EXAMPLE = Path(__file__).parents[2] / "examples" / "dpo.py"


@pytest.mark.parametrize("columns", ["messages", "RLAIF-V"])
@pytest.mark.parametrize("use_peft", ["false", "true"])
def test_dpo_prefers_the_chosen_answers(columns, use_peft, checkpoint, make_image, tmp_path):
    rows = []
    for index in range(4):
        if columns == "RLAIF-V":
            row = {"image": make_image(index), "question": "Blue?", "chosen": "red cat", "rejected": "12 cats"}
        else:
            row = {"images": [make_image(index)], "prompt": [{"role": "user", "content": "Blue?"}]}
            row |= {"chosen": [{"role": "assistant", "content": "red cat"}]}
            row |= {"rejected": [{"role": "assistant", "content": "12 cats"}]}
        rows.append(row)
    (tmp_path / "data").mkdir()
    Dataset.from_list(rows).to_parquet(tmp_path / "data" / "train.parquet")
    arguments = ["--model_name_or_path", str(checkpoint), "--dataset_name", str(tmp_path / "data")]
    arguments += ["--output_dir", str(tmp_path / "out"), "--use_cpu", "true", "--bf16", "false", "--max_steps", "5"]
    arguments += ["--learning_rate", "1e-3", "--logging_steps", "1", "--use_peft", use_peft, "--beta", "1.0"]
    parser = TrlParser((ScriptArguments, DPOConfig, ModelConfig))
    trainer = runpy.run_path(str(EXAMPLE))["main"](*parser.parse_args_and_config(args=arguments))
    margins = [log["rewards/margins"] for log in trainer.state.log_history if "rewards/margins" in log]
    assert margins[0] == pytest.approx(0, abs=1e-4) and margins[-1] > 0.1
    if use_peft == "false":
        table = AlignGPTForConditionalGeneration.from_pretrained(checkpoint).model.alignment_embeddings.weight
        trained = load_file(tmp_path / "out" / "model.safetensors")["model.alignment_embeddings.weight"]
        assert torch.equal(table, trained)
