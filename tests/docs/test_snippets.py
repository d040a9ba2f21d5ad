"""Every snippet of README and manual is run, page by page, with tiny models under the names that the snippets use."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from aligngpt.processing.corpus.records import read_record
from aligngpt.processing.corpus.samples import Sample
from aligngpt.weights.exporting import export_llava

from ..hub_server import LoopbackHub  # noqa: TID252
from ..modeling_aligngpt.weights.test_converting import authors, source  # noqa: F401, TID252  fixtures
from ..processing.conftest import clip_scorer  # noqa: F401, TID252  a fixture


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What needs more than this machine, and what stands for it here
SUBSTITUTIONS = {
    "--config pretrain_7b --accelerate_config zero2_8gpu": "--config pretrain_tiny_cpu --max_steps 2 "
    "--vision openai/clip-vit-large-patch14-336 --text lmsys/vicuna-7b-v1.5",
    "--config sft_7b --accelerate_config zero3_8gpu": "--config sft_tiny_cpu --max_steps 2",
    "--config sft_7b_qlora_24gb": "--config sft_tiny_cpu --use_peft true --max_steps 2",
    "--config sft_7b --model": "--config sft_tiny_cpu --model",
}
# What goes on until it is ended, and what it says when it is ready
SERVERS = {"aligngpt serve": "Serving ", "aligngpt page demo_output": "The page is at "}
# What is not run here, by its first line, and why
SKIPPED = {
    "make demo": "tests/examples/test_demo.py runs all its steps, and the whole takes minutes",
    "make install": "it made the environment that this test runs in",
    "python3 -m venv env": "tests/test_environments.py runs this with gradio and with lmms-eval",
    "python3 -m venv with-gradio": "tests/test_environments.py runs it",
    "python3 -m venv with-lmms-eval": "tests/test_environments.py runs it",
    "python3.11 -m venv .venv": "what make install does",
}
UPLOAD = """
from huggingface_hub import HfApi
for repository, folder in REPOSITORIES.items():
    api = HfApi(token=repository.split("/")[0])
    api.create_repo(repository)
    api.upload_folder(repo_id=repository, folder_path=folder)
"""


class Block(NamedTuple):
    page: Path
    language: str
    text: str

    @property
    def first_line(self) -> str:
        """Without its comment."""
        return self.text.splitlines()[0].partition("  #")[0].strip()


def read_blocks(page: Path) -> Iterator[Block]:
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE):
        yield Block(page, language, text)


BLOCKS = [block for page in PAGES for block in read_blocks(page)]
PAGES_WITH_BLOCKS = list(dict.fromkeys(block.page for block in BLOCKS))


@pytest.fixture
def world(tmp_path, checkpoint, make_image):
    """A folder with the files that the snippets name."""
    folder = tmp_path / "world"
    for name in ("demo_output/stage1", "demo_output/stage2"):
        shutil.copytree(checkpoint, folder / name)
        make_image(3).save(folder / name / "example.png")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("results", "*.png"))
    shutil.copytree(ROOT / "examples" / "data", folder / "examples" / "data", dirs_exist_ok=True)
    (folder / "images").mkdir()
    pairs, chats = [], []
    for index in range(16):
        make_image(index, (30, 24)).save(folder / "images" / f"{index}.png")
        turns = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": f"It is cat {index}."}]
        pairs.append({"id": f"{index:09d}", "image": f"{index}.png", "conversations": turns})
        chats.append(
            {"id": "000000033471" if index == 0 else str(index), "image": f"{index}.png", "conversations": turns}
        )
    (folder / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(pairs))
    (folder / "llava_v1_5_mix665k.json").write_text(json.dumps(chats))
    return folder


@pytest.fixture
def hub(tmp_path, clip_scorer, text_folder, checkpoint, model, processor):  # noqa: F811
    """A Hub that has tiny models under the names of large ones; what a snippet pushes goes there too."""
    llava, llava_processor = export_llava(model, processor)
    for part in (llava, llava_processor):
        part.save_pretrained(tmp_path / "llava")
    repositories = {
        "openai/clip-vit-large-patch14-336": str(clip_scorer),
        "lmsys/vicuna-7b-v1.5": str(text_folder),
        "llava-hf/llava-1.5-7b-hf": str(tmp_path / "llava"),
        "you/aligngpt-demo": str(checkpoint),
    }
    with LoopbackHub() as hub:
        for account in ("you", *(repository.split("/")[0] for repository in repositories)):
            hub.tokens[account] = (account, True)
        environment = hub.env(token="you", cache=tmp_path / "home")
        code = UPLOAD.replace("REPOSITORIES", repr(repositories))
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        yield environment


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES_WITH_BLOCKS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_snippets_of_a_page_run_one_after_the_other(page, world, hub, source):  # noqa: F811
    shutil.copytree(source, world / "authors" / "AlignGPT-7b")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**hub, "PATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with ExitStack() as servers:
        run_blocks(page, world, environment, servers)


def start(text: str, ready: str, folder: Path, environment: dict[str, str], servers: ExitStack) -> None:
    """Starts a server, to be ended with the stack, and waits until it is ready."""
    log = folder / "server.log"
    with open(log, "w") as file:
        command = ["bash", "-euc", f"exec {text}"]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file)
    servers.callback(process.wait)
    servers.callback(process.terminate)
    while ready not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)


def run_blocks(page: Path, world: Path, environment: dict[str, str], servers: ExitStack) -> None:
    program = ""
    for block in read_blocks(page):
        if block.first_line in SKIPPED:
            continue
        if server := next((name for name in SERVERS if block.text.startswith(name)), None):
            start(block.text, SERVERS[server], world, environment, servers)
            continue
        if block.language == "python":
            program += block.text + "\n"
            command = [sys.executable, "-c", program]
        elif block.language == "bash":
            text = block.text
            for written, here in SUBSTITUTIONS.items():
                text = text.replace(written, here)
            command = ["bash", "-euc", text]
        elif block.language == "json":
            for record in read_records(block.text):
                assert isinstance(read_record(record), Sample), record
            continue
        else:
            continue
        result = subprocess.run(command, cwd=world, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{block.text}\n{result.stdout[-1500:]}\n{result.stderr[-3000:]}"
        assert "grad_fn" not in result.stdout


def read_records(text: str) -> Iterator[dict]:
    """The JSON objects of a block, one after the other."""
    decoder, position = json.JSONDecoder(), 0
    while position < len(text.rstrip()):
        record, position = decoder.raw_decode(text, position)
        yield record
        position += len(text[position:]) - len(text[position:].lstrip())


def test_the_sample_files_hold_records_and_their_pictures():
    folder = ROOT / "examples" / "data"
    captions = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    conversations = json.loads((folder / "conversations.json").read_text())
    for record in captions + conversations:
        sample = read_record(record)
        assert isinstance(sample, Sample), sample
        assert all((folder / "images" / image).is_file() for image in sample.images)


def test_blocks_are_of_known_languages():
    assert {block.language for block in BLOCKS} == {"python", "bash", "json", "text"}


def test_what_is_left_out_or_replaced_is_still_there():
    first_lines = {block.first_line for block in BLOCKS}
    assert not SKIPPED.keys() - first_lines
    text = "".join(block.text for block in BLOCKS)
    assert all(written in text for written in SUBSTITUTIONS)
