"""
Requests a second of `aligngpt serve` beside transformers' own server, which runs one answer after the other for models
with pictures; both in processes of their own, on the same checkpoint, asked in turns by OpenAI's client:

    python benchmarks/serving.py demo_output/stage2
    python benchmarks/serving.py you/aligngpt-7b --requests 256 --device cuda --output serving.json

Every request is one picture and a question, answered greedily with up to `--max_tokens` tokens; the answers of both
servers have to be the same. With `--steady N`, N more requests go to ours alone, and its memory is told on the way.
"""

import argparse
import base64
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path

import openai
import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table


QUESTIONS = ("describe the picture.", "how many shapes are there?", "what colour is top-left?", "what is it?")
CLIENTS = (1, 8, 32)
OURS, STOCK = "aligngpt serve", "transformers serve"


@contextmanager
def server(name: str, args: argparse.Namespace, folder: Path):
    """A server in a process: its client, its process."""
    if name == OURS:
        command = ["-m", "aligngpt", "serve", args.model, "--name", args.model, "--port", "0", "--device", args.device]
        ready = r"(http://\S+:\d+)"
    else:
        code = "from transformers.cli.transformers import main; main()"
        command = ["-c", code, "serve", args.model, "--trust-remote-code", "--port", "0", "--device", args.device]
        ready = r"running on (http://\S+)"
    log = folder / f"{name}.log"
    with open(log, "w") as file:
        process = subprocess.Popen([sys.executable, *command], stdout=file, stderr=file)
    try:
        while not (found := re.search(ready, log.read_text())):
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            time.sleep(0.2)
        yield openai.OpenAI(base_url=f"{found[1]}/v1", api_key="x", max_retries=0, timeout=600), process
    finally:
        process.terminate()
        process.wait()


def requests(client: openai.OpenAI, args: argparse.Namespace, picture: str, count: int, clients: int):
    """Answers of that many requests by that many clients at once, and requests a second."""

    def ask(number: int) -> str:
        image = {"type": "image_url", "image_url": {"url": picture}}
        content = [image, {"type": "text", "text": QUESTIONS[number % len(QUESTIONS)]}]
        messages = [{"role": "user", "content": content}]
        found = client.chat.completions.create(
            model=args.model, messages=messages, temperature=0, max_tokens=args.max_tokens
        )
        return found.choices[0].message.content.strip()

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(ask, range(count)))
    return answers, count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--picture", help="example.png of the model's folder")
    parser.add_argument("--requests", type=int, default=96, help="for each number of clients and server")
    parser.add_argument("--max_tokens", type=int, default=32)
    parser.add_argument("--steady", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    path = Path(args.picture or Path(args.model) / "example.png")
    picture = f"data:{Image.open(path).get_format_mimetype()};base64,{base64.b64encode(path.read_bytes()).decode()}"
    rates: dict[int, dict[str, float]] = {}
    memory: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        with server(OURS, args, Path(folder)) as ours, server(STOCK, args, Path(folder)) as stock:
            for client, _ in (ours, stock):
                requests(client, args, picture, 8, 1)  # the first are slower
            for clients in CLIENTS:
                found = {
                    name: requests(client, args, picture, args.requests, clients)
                    for name, (client, _) in ((OURS, ours), (STOCK, stock))
                }
                answers = [answers for answers, _ in found.values()]
                if answers[0] != answers[1]:
                    raise SystemExit(f"The answers differ: {[pair for pair in zip(*answers) if len({*pair}) > 1][:3]}")
                rates[clients] = {name: rate for name, (_, rate) in found.items()}
        if args.steady:
            with server(OURS, args, Path(folder)) as (client, process):
                for done in range(0, args.steady + 1, max(args.steady // 10, 1)):
                    if done:
                        requests(client, args, picture, max(args.steady // 10, 1), 8)
                    memory.append((done, psutil.Process(process.pid).memory_info().rss / 2**20))
    table = Table("clients", f"{OURS}, requests/s", f"{STOCK}, requests/s", "ratio")
    for clients, rate in rates.items():
        table.add_row(str(clients), f"{rate[OURS]:.1f}", f"{rate[STOCK]:.1f}", f"{rate[OURS] / rate[STOCK]:.2f}")
    console = Console(highlight=False)
    console.print(table)
    if memory:
        console.print("MiB of memory: " + ", ".join(f"{size:.0f} after {done}" for done, size in memory))
    if args.output:
        result = {
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, device {args.device}",
            "versions": {name: version(name) for name in ("aligngpt", "torch", "transformers", "uvicorn")},
            "model": args.model,
            "requests_per_second": rates,
            "memory_mib": memory,
        }
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
