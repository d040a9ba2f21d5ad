"""
`aligngpt serve`: a server with OpenAI's interface.

    aligngpt serve demo_output/stage2
    aligngpt serve you/aligngpt-7b --host 0.0.0.0 --port 8080 --load_in_4bit true

It answers /v1/chat/completions and /v1/responses, whole and streamed, with pictures as data: or public http(s): URLs.
A level is asked for by chat_template_kwargs: {"alignment_level": 7}; /v1/alignment_weights tells what the gate chose.
The key that clients need is --api_key, or better the variable ALIGNGPT_API_KEY, which no list of processes shows.
"""

import json
import logging
import os
from dataclasses import dataclass, field

from aligngpt.processing.command_line import parse_command
from aligngpt.processing.command_output import Mistakes

from .arguments import ModelArguments, Sampling, read_level
from .listening import address_of, bind, find_port_problems, is_loopback
from .loading import load_model


logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 1024


@dataclass
class ServeArguments(Sampling, ModelArguments):
    """What is served, where, and to whom."""

    host: str = field(
        default="127.0.0.1", metadata={"help": "Address to listen at; 0.0.0.0 is all of this machine's."}
    )
    port: int = field(default=8000, metadata={"help": "Port to listen at."})
    name: str | None = field(default=None, metadata={"help": "What clients call the model; --model if not given."})
    api_key: str | None = field(default=None, metadata={"help": "What clients have to know; none if not given."})
    level: str = field(default="auto", metadata={"help": "Alignment level where a request names none."})
    chat_template_kwargs: str = field(default="{}", metadata={"help": "JSON: variables of the template, as defaults."})
    max_batch_size: int = field(default=8, metadata={"help": "Requests answered at a time; memory grows with it."})
    max_waiting: int = field(
        default=512, metadata={"help": "Requests that wait; further ones are told to come again."}
    )
    max_images: int = field(default=16, metadata={"help": "Pictures of a request."})
    max_body_mb: int = field(default=20, metadata={"help": "Megabytes of a request, or of a picture that is fetched."})
    image_urls: str = field(default="public", metadata={"help": "URLs that are fetched: public, none, or all."})


def find_problems(args: ServeArguments) -> list[str]:
    """Arguments that mean nothing."""
    problems = Sampling.find_problems(args) + ModelArguments.find_problems(args) + find_port_problems(args.port)
    if args.image_urls not in ("public", "none", "all"):
        problems.append(f"--image_urls {args.image_urls}: known are public, none, all.")
    for name in ("max_batch_size", "max_waiting", "max_images", "max_body_mb"):
        if getattr(args, name) < 1:
            problems.append(f"--{name} {getattr(args, name)}: it is 1 at least.")
    try:
        if not isinstance(json.loads(args.chat_template_kwargs), dict):
            raise ValueError("it is no object")
    except ValueError as error:
        problems.append(f"--chat_template_kwargs {args.chat_template_kwargs}: a JSON object is meant ({error}).")
    if args.api_key == "":
        problems.append("--api_key is empty: leave it out, or give one.")
    return problems


def main(arguments: list[str]) -> None:
    """The command `aligngpt serve`."""
    args = parse_command(ServeArguments, arguments, "serve", __doc__, first="model")
    if problems := find_problems(args):
        raise Mistakes(problems)
    try:
        import uvicorn

        from .answering import Assistant
        from .server import ServerOptions, build_app
    except ModuleNotFoundError as error:
        raise Mistakes([f"{error.name} is needed to serve: pip install 'aligngpt[serve]'"]) from error

    api_key = args.api_key or os.environ.get("ALIGNGPT_API_KEY") or None
    if api_key is None and not is_loopback(args.host):
        logger.warning("Everybody who reaches %s can ask: --api_key is not given.", args.host)
    listening = bind(args.host, args.port)
    logger.info("Loading %s ...", args.model)
    assistant = Assistant(*load_model(args))
    assistant.processor.read_alignment_level(read_level(args.level))
    sampling = {name: getattr(args, name) for name in Sampling.__dataclass_fields__}
    options = ServerOptions(
        name=args.name or args.model,
        sampling=Sampling(**sampling),
        level=read_level(args.level),
        template_arguments=json.loads(args.chat_template_kwargs),
        api_key=api_key,
        max_batch_size=args.max_batch_size,
        max_waiting=args.max_waiting,
        max_images=args.max_images,
        max_body_bytes=args.max_body_mb * 2**20,
        image_urls=args.image_urls,
    )
    config = uvicorn.Config(
        build_app(assistant, options),
        log_level="warning",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=5,
    )
    logger.info("Serving %s at %s/v1; Ctrl-C ends.", options.name, address_of(listening))
    uvicorn.Server(config).run([listening])
