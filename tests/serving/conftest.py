"""A server on a port of its own, pictures as clients send them, and what the page ends with."""

import base64
import copy
import io
import threading
import time
from contextlib import contextmanager

import openai
import pytest
import torch
import uvicorn

from aligngpt import AlignGPTProcessor
from aligngpt.serving.answering import Assistant
from aligngpt.serving.arguments import Sampling
from aligngpt.serving.server import ServerOptions, build_app


@contextmanager
def running(app):
    """The address of an application that uvicorn serves on a thread."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="session")
def parts(composed, checkpoint):
    """With a processor of its own: padding changes what a tokenizer saves."""
    return composed[0], AlignGPTProcessor.from_pretrained(checkpoint)


@pytest.fixture(scope="session")
def steered(parts):
    """Model and processor, with vectors so long that levels show in the answers, which have no broken characters."""
    model = copy.deepcopy(parts[0])
    vocabulary = parts[1].tokenizer.get_vocab()
    model.generation_config.suppress_tokens = [n for text, n in vocabulary.items() if text.startswith("<0x")]
    with torch.no_grad():
        model.model.alignment_embeddings.weight.mul_(30)
    return model, parts[1]


@pytest.fixture(scope="session")
def serve(steered):
    """A function that serves the tiny model; used as a context, it gives OpenAI's client."""

    @contextmanager
    def start(key="any", **options):
        options = {"name": "tiny", "sampling": Sampling(max_new_tokens=8), **options}
        with running(build_app(Assistant(*steered), ServerOptions(**options))) as address:
            yield openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=60)

    return start


@pytest.fixture(scope="session")
def client(serve):
    with serve() as client:
        yield client


@pytest.fixture(scope="session")
def png(make_image):
    """A function that gives a picture's file."""

    def encode(seed):
        with io.BytesIO() as file:
            make_image(seed).save(file, "PNG")
            return file.getvalue()

    return encode


@pytest.fixture(scope="session")
def data_url(png):
    """A function that gives a picture as OpenAI's clients send it."""
    return lambda seed: "data:image/png;base64," + base64.b64encode(png(seed)).decode()


@pytest.fixture(scope="session")
def ask(data_url):
    """A function that gives messages about a picture, or about none."""

    def messages(text, *seeds):
        pictures = [{"type": "image_url", "image_url": {"url": data_url(seed)}} for seed in seeds]
        return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]

    return messages


@pytest.fixture
def files(tmp_path, make_image):
    """Three pictures, a file that is none and one that ends too early."""
    for number in range(3):
        make_image(number).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "torn.png").write_bytes((tmp_path / "0.png").read_bytes()[:400])
    return tmp_path


@pytest.fixture(scope="session")
def last_of():
    """A function that gives what the page ends with: the answer, and the bars."""

    def answer(page, text, paths=(), history=(), level="auto: the gate chooses", temperature=0):
        message = {"text": text, "files": [str(path) for path in paths]}
        return list(page.answer(message, list(history), level, 8, temperature))[-1]

    return answer
