"""
`aligngpt chat`: talk to a model in the terminal, or have it answer a file of questions.

    aligngpt chat demo_output/stage2 --image photo.jpg
    aligngpt chat demo_output/stage2 --input questions.jsonl --image_folder images --output_file answers.jsonl

In the terminal, /help tells what can be typed beside questions. Questions of a file are records of any form that the
other commands take, and LLaVA's (`question_id`, `image`, `text`); answers are written as JSON Lines in their order,
one row for each question, with what was wrong where it could not be asked. A killed run goes on where it was.
"""

import logging

from aligngpt.processing.command_line import parse_command
from aligngpt.processing.command_output import Mistakes

from .arguments import ChatArguments, find_problems
from .loading import load_model


logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> None:
    """The command `aligngpt chat`."""
    args = parse_command(ChatArguments, arguments, "chat", __doc__, first="model")
    if problems := find_problems(args):
        raise Mistakes(problems)
    from .answering import Assistant

    if args.input is not None:
        from .questions import answer_file, open_run

        run = open_run(args)  # what is wrong with the files is told before the model is loaded
        answer_file(run, Assistant(*load_model(args)))
        return
    from .terminal import Terminal

    logger.info("Loading %s ...", args.model)
    Terminal(Assistant(*load_model(args)), args).run()
