"""Other people's environments: the commands of docs/install.md, and the versions that servers pin."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement


ROOT = Path(__file__).parents[1]
REQUIREMENTS = {
    requirement.name: requirement.specifier
    for requirement in map(
        Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    )
}
TRY = """
import sys
import torch
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig
import aligngpt

sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
config = aligngpt.AlignGPTConfig(
    text_config=LlamaConfig(**sizes, vocab_size=128),
    vision_config=CLIPVisionConfig(**sizes, image_size=16, patch_size=4),
    image_token_index=100,
    align_token_id=101,
)
model = AutoModelForImageTextToText.from_config(config)
ids = torch.tensor([[1, 101, *16 * [100], 5, 6]])
print(model.generate(input_ids=ids, pixel_values=torch.rand(1, 3, 16, 16), max_new_tokens=3).shape[1] > ids.shape[1])
for name in sys.argv[1:]:
    __import__(name)
"""


@pytest.mark.parametrize(
    ("engine", "pins"),
    [  # as their wheels say
        ("vllm 0.33.0", {"transformers": ["5.19.0", "5.20.2"], "pillow": ["13.0.0"], "huggingface_hub": ["1.31.0"]}),
        ("sglang 0.5.23", {"transformers": ["5.19.0"], "sentencepiece": ["0.2.1"]}),
        ("gradio 6.31.0", {"pillow": ["12.3.0"], "huggingface_hub": ["2.4.0"], "numpy": ["2.4.6"]}),
        ("lmms-eval 0.7.3 by wandb 0.25.0", {"protobuf": ["6.33.4"], "numpy": ["1.26.4"]}),
    ],
)
def test_what_others_pin_is_in_the_range_of_what_is_required(engine, pins):
    for name, versions in pins.items():
        assert all(REQUIREMENTS[name].contains(version) for version in versions), (engine, name)


def install_commands(name: str) -> list[str]:
    """The commands of the block of docs/install.md that makes this environment."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "install.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if f"venv {name}\n" in block]
    return block.strip().splitlines()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("name", "module"), [("with-gradio", "gradio"), ("with-lmms-eval", "lmms_eval")])
def test_the_commands_of_the_manual_make_one_environment(name, module, tmp_path):
    # The one version of torch that a machine without a GPU is sure to have small
    (tmp_path / "constraint.txt").write_text("torch==2.13.0\n")
    environment = {**os.environ, "PIP_CONSTRAINT": str(tmp_path / "constraint.txt"), "PYTHONPATH": ""}
    folder = tmp_path / name
    for command in install_commands(name):
        command = command.replace(name, str(folder)).replace('".[data]"', f'"{ROOT}[data]"')
        result = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]
    python = str(folder / "bin" / "python")
    result = subprocess.run([python, "-m", "pip", "check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    # As the manual says: torchvision's wheel does not load beside a build of torch for CPUs
    if subprocess.run([python, "-c", "import torchvision"], capture_output=True).returncode:
        subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"], check=True)
    tried = subprocess.run([python, "-c", TRY, module], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert tried.returncode == 0 and tried.stdout.strip().endswith("True"), tried.stderr[-3000:]
