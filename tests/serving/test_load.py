"""`aligngpt serve` as a process of its own, under more than it was made for: then it still answers."""

import http.client
import os
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import psutil
import pytest


@pytest.fixture(scope="module")
def command(checkpoint, tmp_path_factory):
    """The server's client, and its process."""
    log = tmp_path_factory.mktemp("server") / "log"
    options = ["--port", "0", "--name", "tiny", "--max_new_tokens", "6", "--max_body_mb", "1"]
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "aligngpt", "serve", str(checkpoint), *options],
            stdout=file,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1", "ALIGNGPT_API_KEY": "secret"},
        )
    while not (found := re.search(r"Serving tiny at (http://\S+)/v1", log.read_text())):
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    yield openai.OpenAI(base_url=f"{found[1]}/v1", api_key="secret", max_retries=0, timeout=240), process
    process.terminate()
    assert process.wait(30) is not None


def complete(client, messages, **options):
    return client.chat.completions.create(model="tiny", messages=messages, temperature=0, **options)


@pytest.mark.slow
def test_two_hundred_clients_among_bad_ones_are_all_answered(command, ask):
    client, _ = command
    expected = [complete(client, ask(f"What is {n}?", n)).choices[0].message.content for n in range(10)]
    host, port, stop = client.base_url.host, client.base_url.port, threading.Event()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\n"

    def slowly():
        with socket.create_connection((host, port)) as connection:
            connection.sendall(head + b"Content-Length: 1000\r\n\r\n")
            while not stop.wait(0.2):
                connection.sendall(b" ")

    def badly():
        while not stop.is_set():
            for body, headers in (
                (b"{", {"Authorization": "Bearer secret"}),
                (b"{}", {"Authorization": "Bearer wrong"}),
                (b"x" * (2 * 2**20), {"Authorization": "Bearer secret"}),
                (b"\x00\xff", {}),
            ):
                connection = http.client.HTTPConnection(host, port, timeout=60)
                connection.request(
                    "POST", "/v1/chat/completions", body, {"Content-Type": "application/json", **headers}
                )
                assert connection.getresponse().status in (400, 401, 413)
                connection.close()

    def leaving():
        while not stop.wait(0.05):
            with socket.create_connection((host, port)) as connection:
                connection.sendall(head + b"Content-Type: application/json\r\nContent-Length: 9")

    def one(number):
        return complete(client, ask(f"What is {number % 10}?", number % 10)).choices[0].message.content

    with ThreadPoolExecutor(12) as others, ThreadPoolExecutor(200) as pool:
        calls = [others.submit(call) for call in (*[slowly] * 6, badly, badly, leaving)]
        try:
            found = list(pool.map(one, range(200)))
        finally:
            stop.set()
        assert [call.exception() for call in calls[6:8]] == [None, None]
    assert found == expected * 20
    assert complete(client, ask("What is 3?", 3)).choices[0].message.content == expected[3]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_requests(command, ask):
    client, process = command
    messages = [ask(f"What is {number}?", number) for number in range(8)]
    memory = []
    with ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            list(pool.map(lambda number: complete(client, messages[number % 8]), range(250)))
            memory.append(psutil.Process(process.pid).memory_info().rss / 2**20)
    # Allocators take a while to have what they need; a leak of 100 kB a request would be 50 MiB by the end
    assert memory[-1] - memory[1] < 25, memory
