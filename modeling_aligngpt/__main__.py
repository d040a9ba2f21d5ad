"""The command `aligngpt`: each sub-command is a function of one module, which imports what is slow when it runs."""

import difflib
import logging
import sys
from importlib.metadata import version
from pkgutil import resolve_name

from aligngpt.processing.command_output import start_logging, told_in_a_line


COMMANDS = {
    "score": (
        "aligngpt.processing.scoring.command:main",
        "score how well captions fit their images",
    ),
    "levels": (
        "aligngpt.processing.levels.command:main",
        "cut scores into alignment levels: data for stage 1",
    ),
    "compose": ("aligngpt.weights.compose_command:main", "make a model from a vision tower and a language model"),
    "convert": (
        "aligngpt.weights.convert_command:main",
        "make a model of the authors' checkpoint or of LLaVA-1.5",
    ),
    "export": ("aligngpt.weights.export_command:main", "write a model in the format of another program"),
    "pretrain": ("aligngpt.training.command_line:pretrain", "stage 1: train projector and alignment embeddings"),
    "sft": ("aligngpt.training.command_line:sft", "stage 2: train language model, projector and gate"),
    "merge": ("aligngpt.training.merge_command:main", "fold a LoRA adapter into the model that it was trained on"),
    "chat": ("aligngpt.serving.chat_command:main", "talk to a model in the terminal, or answer a file of questions"),
    "serve": ("aligngpt.serving.serve_command:main", "a server with the interface of OpenAI"),
    "page": ("aligngpt.serving.page_command:main", "a page to talk to a model in a browser"),
    "profile": ("aligngpt.serving.profile_command:main", "what the gate chooses, by groups of questions"),
    "inspect": ("aligngpt.training.inspect_command:main", "show what a row of training data becomes, token by token"),
    "card": ("aligngpt.training.card_command:main", "write the model card of a training run's output anew"),
}
EARLIER_COMMANDS = {"export-llava": ["export", "--to", "llava"]}  # until the next release

USAGE = "\n".join(
    [
        "usage: aligngpt COMMAND [arguments]",
        "",
        *(f"  {name:<12}{text}" for name, (_, text) in COMMANDS.items()),
        "",
        "  aligngpt COMMAND --help   what a command does, and its arguments",
        "  aligngpt --version        the version",
        "  --debug                   with any command: the traceback of a mistake, beside its line",
        "",
    ]
)


def main() -> None:
    """Runs the sub-command that the first argument names; a user's mistake is told in a line, with exit code 2."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    name, *arguments = arguments or ["--help"]
    if name in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return
    if name == "--version":
        sys.stdout.write(f"aligngpt {version('aligngpt')}\n")
        return
    start_logging()
    if name in EARLIER_COMMANDS:
        earlier, (name, *options) = name, EARLIER_COMMANDS[name]
        arguments = [*options, *arguments]
        now = " ".join([name, *options])
        logging.getLogger("aligngpt").warning(
            "aligngpt %s is called aligngpt %s now; the earlier name works for one more release.", earlier, now
        )
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, [*COMMANDS, "--help", "--version"], n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        sys.stderr.write(f"aligngpt: there is no command {name!r}: {meant}(aligngpt --help lists all)\n")
        sys.exit(2)
    with told_in_a_line(f"aligngpt {name}", debug):
        resolve_name(COMMANDS[name][0])(arguments)


if __name__ == "__main__":
    main()
