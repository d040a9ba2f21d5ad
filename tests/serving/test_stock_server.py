"""transformers' own server with a checkpoint of ours, in an environment without the package."""

import copy
import os
import re
import subprocess
import sys
import time

import openai
import pytest
import torch

from aligngpt.serving.answering import Assistant
from aligngpt.serving.arguments import Sampling


STOCK = """
import sys
sys.modules["aligngpt"] = None
from transformers.cli.transformers import main
sys.argv = ["transformers", "serve", {model!r}, "--trust-remote-code", "--port", "0", "--device", "cpu"]
main()
"""


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def stock(request, steered, tmp_path_factory):
    """The folder of a checkpoint, and the address of the server that has it."""
    folder = tmp_path_factory.mktemp("stock")
    model = copy.deepcopy(steered[0]).to(request.param)
    for part in (model, steered[1]):
        part.save_pretrained(folder / "model")
    environment = {**os.environ, "HF_MODULES_CACHE": str(folder / "modules"), "OMP_NUM_THREADS": "1"}
    with open(folder / "log", "w") as log:
        command = [sys.executable, "-c", STOCK.format(model=str(folder / "model"))]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    while not (found := re.search(r"running on (http://\S+)", (folder / "log").read_text())):
        assert process.poll() is None, (folder / "log").read_text()
        time.sleep(0.1)
    yield (
        model,
        request.param,
        str(folder / "model"),
        openai.OpenAI(base_url=f"{found[1]}/v1", api_key="x", max_retries=0),
    )
    process.terminate()
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("level", [None, 0, "best"])
def test_it_answers_as_ours_does_at_every_level(level, stock, steered, make_image, ask):
    model, dtype, name, client = stock
    assistant = Assistant(model, steered[1])
    parts = [{"type": "image", "image": make_image(0)}, {"type": "text", "text": "What is this?"}]
    inputs = assistant.prepare([[{"role": "user", "content": parts}]], level)
    expected = assistant.answer(inputs, Sampling(max_new_tokens=8))[0][0]
    extra = {"chat_template_kwargs": {"alignment_level": level}}
    options = {"model": name, "messages": ask("What is this?", 0), "max_tokens": 8, "extra_body": extra}
    found = client.chat.completions.create(**options).choices[0].message.content.strip()
    chunks = client.chat.completions.create(**options, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).strip() == found != ""
    if dtype == torch.float32:  # in half precision two tokens may be as likely as each other
        assert found == expected
