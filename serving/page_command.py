"""
`aligngpt page`: a page to talk to a model in a browser.

    aligngpt page demo_output/stage2 --system "look and answer."
    aligngpt page you/aligngpt-7b --load_in_4bit true --host 0.0.0.0 --user me --password secret

The page has pictures, questions, a level or the gate's choice, and the gate's weights as bars. With --space FOLDER it
is written as a Hugging Face Space instead, which `hf upload you/NAME FOLDER --repo-type space` publishes.
"""

import logging
import os
from dataclasses import dataclass, field

from aligngpt.processing.command_line import parse_command
from aligngpt.processing.command_output import Mistakes

from .arguments import ModelArguments, Sampling
from .loading import load_model


logger = logging.getLogger(__name__)


@dataclass
class PageArguments(Sampling, ModelArguments):
    """What is shown, where, and to whom."""

    host: str = field(default="127.0.0.1", metadata={"help": "To listen at; 0.0.0.0 is all of this machine's."})
    port: int = field(default=7860, metadata={"help": "Port to listen at; 0 is any that is free."})
    title: str | None = field(default=None, metadata={"help": "Above the page; --model if not given."})
    level: str = field(default="auto", metadata={"help": "Alignment level that the page begins with."})
    system: str | None = field(default=None, metadata={"help": "System message of every conversation."})
    example: list[str] = field(default_factory=list, metadata={"help": "Pictures to click on; else example.png."})
    user: str | None = field(default=None, metadata={"help": "Name that the page asks for; with --password."})
    password: str | None = field(default=None, metadata={"help": "Password that the page asks for."})
    share: bool = field(default=False, metadata={"help": "A public address through gradio's servers, for three days."})
    space: str | None = field(default=None, metadata={"help": "Folder to write a Space to, instead of running."})


def find_problems(args: PageArguments) -> list[str]:
    """Arguments that do not go together."""
    problems = Sampling.find_problems(args) + ModelArguments.find_problems(args)
    if (args.user is None) != (args.password is None):
        problems.append("--user and --password go together.")
    if not 0 <= args.port <= 65535:
        problems.append(f"--port {args.port}: a port is 0 (any that is free) to 65535.")
    if args.space is not None and os.path.isdir(args.model):
        problems.append(f"--space {args.space}: a Space loads its model from the Hub; {args.model} is a folder.")
    return problems


def find_examples(args: PageArguments) -> list[tuple[str, str]]:
    """Pictures to click on, and a question for each."""
    own = os.path.join(args.model, "example.png")
    paths = args.example or [path for path in (own,) if os.path.isfile(path)]
    return [(os.path.abspath(path), "describe the picture.") for path in paths]


def main(arguments: list[str]) -> None:
    """The command `aligngpt page`."""
    args = parse_command(PageArguments, arguments, "page", __doc__, first="model")
    if problems := find_problems(args):
        raise Mistakes(problems)
    if args.space is not None:
        from .space import write_space

        write_space(args.space, args.model, args.title)
        logger.info("Written to %s: hf upload you/NAME %s --repo-type space", args.space, args.space)
        return
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise Mistakes([f"{error.name} is needed for the page: pip install 'aligngpt[page]'"]) from error
    from .answering import Assistant
    from .listening import address_of, bind, is_loopback
    from .page import STYLE, build_page, check_examples

    examples = find_examples(args)
    check_examples([path for path, _ in examples])
    with bind(args.host, args.port) as listening:  # before the model is loaded; gradio opens its own
        address = address_of(listening)
    if args.user is None and not (is_loopback(args.host) and not args.share):
        logger.warning("Everybody who reaches the page can ask: --user and --password are not given.")
    logger.info("Loading %s ...", args.model)
    assistant = Assistant(*load_model(args))
    page = build_page(
        assistant,
        args.title or args.model,
        args.system,
        args.level,
        Sampling(args.max_new_tokens, args.temperature, args.top_p, args.seed),
        examples,
    )
    logger.info("The page is at %s; Ctrl-C ends.", address)
    page.queue(max_size=64).launch(
        server_name=args.host,
        server_port=int(address.rpartition(":")[2]),
        share=args.share,
        auth=None if args.user is None else (args.user, args.password or ""),
        allowed_paths=[path for path, _ in examples],
        css=STYLE,
        theme=gradio.themes.Soft(),
        quiet=True,
        max_file_size="20mb",
        footer_links=[],
    )
