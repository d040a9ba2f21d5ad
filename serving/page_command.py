"""
`aligngpt page`: a page to talk to a model in a browser.

    aligngpt page demo_output/stage2 --system "look and answer."
    aligngpt page you/aligngpt-7b --load_in_4bit true --host 0.0.0.0 --user me --password secret
    aligngpt page you/aligngpt-7b --space FOLDER

The page has pictures, questions, a level or the gate's choice, and the gate's weights as bars. With --space FOLDER it
is written as a Hugging Face Space instead, with the options that are given; `hf upload you/NAME FOLDER --repo-type
space` publishes it. The variable ALIGNGPT_PASSWORD does as --password does, and no list of processes shows it.
"""

import logging
import os
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from aligngpt.processing.command_line import parse_command
from aligngpt.processing.command_output import Mistakes

from .arguments import ModelArguments, Sampling
from .examples import check_examples, find_own_example
from .listening import address_of, bind, find_port_problems, is_loopback
from .loading import load_model


if TYPE_CHECKING:
    import gradio as gr


logger = logging.getLogger(__name__)

FOR_RUNNING = ("device", "host", "port", "user", "password", "share")  # what a Space decides by itself


@dataclass
class PageArguments(Sampling, ModelArguments):
    """What is shown, where, and to whom."""

    host: str = field(default="127.0.0.1", metadata={"help": "To listen at; 0.0.0.0 is all of this machine's."})
    port: int = field(default=7860, metadata={"help": "Port to listen at; 0 is any that is free."})
    title: str | None = field(default=None, metadata={"help": "Above the page; the model's name if not given."})
    level: str = field(default="auto", metadata={"help": "Alignment level that the page begins with."})
    system: str | None = field(default=None, metadata={"help": "System message of every conversation."})
    example: list[str] = field(default_factory=list, metadata={"help": "Pictures to click on; else example.png."})
    user: str | None = field(default=None, metadata={"help": "Name that the page asks for; with --password."})
    password: str | None = field(default=None, metadata={"help": "Password that the page asks for."})
    share: bool = field(default=False, metadata={"help": "A public address through gradio's servers, for three days."})
    space: str | None = field(default=None, metadata={"help": "Folder to write a Space to, instead of running."})


def find_problems(args: PageArguments) -> list[str]:
    """Arguments that do not go together."""
    problems = Sampling.find_problems(args) + ModelArguments.find_problems(args) + find_port_problems(args.port)
    if (args.user is None) != (args.password is None):
        problems.append("--user and --password go together.")
    if args.space is not None:
        problems += [
            f"--{name} is for running the page, not for --space." for name in FOR_RUNNING if name in given(args)
        ]
        if os.path.isdir(args.model):
            problems.append(f"--space {args.space}: a Space loads its model from the Hub; {args.model} is a folder.")
    return problems


def given(args: PageArguments) -> dict[str, Any]:
    """The options that are not as they are by default."""
    usual = PageArguments(args.model)
    values = {field.name: getattr(args, field.name) for field in fields(args)}
    return {name: value for name, value in values.items() if value != getattr(usual, name)}


def find_examples(args: PageArguments) -> list[tuple[str, str]]:
    """Pictures to click on, and a question for each: those of `--example`, or the one in the model's repository."""
    paths = args.example or find_own_example(args.model, args.revision)
    return [(os.path.abspath(path), "describe the picture.") for path in paths]


def load_page(args: PageArguments) -> "gr.Blocks":
    """
    The page with its model, to be shown by `aligngpt.serving.page.launch`.

    Raises:
        Mistakes: without gradio.
        ValueError: if an example is no picture, or the level not one of the model's.
    """
    try:
        from .page import build_page
    except ModuleNotFoundError as error:
        raise Mistakes([f"{error.name} is needed for the page: pip install 'aligngpt[page]'"]) from error
    from .answering import Assistant

    examples = find_examples(args)
    check_examples([path for path, _ in examples])
    logger.info("Loading %s ...", args.model)
    assistant = Assistant(*load_model(args))
    # Where a folder is on this machine is nobody's business
    name = os.path.basename(os.path.abspath(args.model)) if os.path.isdir(args.model) else args.model
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p, args.seed)
    return build_page(assistant, args.title or name, args.system, args.level, sampling, examples)


def main(arguments: list[str]) -> None:
    """The command `aligngpt page`."""
    args = parse_command(PageArguments, arguments, "page", __doc__, first="model")
    if args.user is not None and args.password is None:
        args.password = os.environ.get("ALIGNGPT_PASSWORD")
    if problems := find_problems(args):
        raise Mistakes(problems)
    if args.space is not None:
        from .space import write_space

        options = {name: value for name, value in given(args).items() if name not in ("space", "title")}
        write_space(args.space, args.model, args.title, **options)
        logger.info("Written to %s: hf upload you/NAME %s --repo-type space", args.space, args.space)
        return
    with bind(args.host, args.port) as listening:  # before the model is loaded; gradio opens its own
        address = address_of(listening)
    page = load_page(args)
    if args.user is None and (args.share or not is_loopback(args.host)):
        logger.warning("Everybody who reaches the page can ask: --user and --password are not given.")
    from .page import launch

    logger.info("The page is at %s; Ctrl-C ends.", address)
    launch(
        page,
        server_name=args.host,
        server_port=int(address.rpartition(":")[2]),
        share=args.share,
        auth=None if args.user is None else (args.user, args.password or ""),
        quiet=True,
    )
