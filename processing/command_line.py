"""How every command of `aligngpt` reads its arguments: one word for one thing, all mistakes told at once."""

import argparse
import difflib
import logging
import os
from typing import Any, TypeVar

from transformers import HfArgumentParser

from .argument_checks import find_problems
from .command_output import Mistakes


logger = logging.getLogger(__name__)

Arguments = TypeVar("Arguments")

# Earlier names of options and of keys in recipes, which go on working for a release, and what they are called now: the
# first of these that the command has
EARLIER_NAMES = {
    "on_bad_row": ("on_error",),
    "out": ("output_dir", "output_file"),
    "scores": ("data",),
    "source": ("model",),
    "text_model_name_or_path": ("text",),
    "train_file": ("data",),
    "vision_model_name_or_path": ("vision",),
    # transformers' own, whose earlier name would lose against a recipe that has the later one
    "gradient_checkpointing": ("activation_checkpointing",),
    "gradient_checkpointing_kwargs": ("activation_checkpointing_kwargs",),
}
# Names that came with a later transformers (5.23) than the oldest that is supported, and what is meant before
LATER_NAMES = {
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows descriptions as they are written, and defaults where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default in (None, argparse.SUPPRESS, "") or action.default == [] or "%(default)" in text:
            return text
        return f"{text} (default: %(default)s)"


class CommandParser(HfArgumentParser):
    """
    transformers' parser of dataclasses with what all commands have in common: hyphens and underscores are the same,
    nothing is abbreviated, a misspelt option is told with the one that was meant, earlier names work with a warning,
    and one input may come without its option's name.

    Args:
        dataclass_types: as transformers'.
        first (`str`, *optional*): the argument whose value may come without the option's name.
        new_output (`bool`): whether `output_dir` may not hold anything yet.
        kwargs: of `argparse.ArgumentParser`.

    Raises:
        Mistakes: from parsing, with every mistake that can be seen before anything is read or loaded.
    """

    def __init__(self, dataclass_types: Any, first: str | None = None, new_output: bool = False, **kwargs):
        super().__init__(dataclass_types, formatter_class=HelpFormatter, allow_abbrev=False, **kwargs)
        self.first, self.new_output = first, new_output
        self.needed = [action.dest for action in self._actions if action.required]
        for action in self._actions:
            action.required = False  # told with the other mistakes
            if first is not None and action.dest == first:
                text, action.help = f"{action.help} Or by --{first}.", argparse.SUPPRESS
                self.add_argument("positional", metavar=first.upper(), nargs="?", help=text)

    def add_argument(self, *names, **kwargs):
        # Hyphens are made underscores as they are read: help needs to show one of both
        shown = [name for name in names if not name.startswith("--") or "-" not in name[2:]]
        return super().add_argument(*(shown or names), **kwargs)

    def format_usage(self) -> str:
        needed = (name.upper() if name == self.first else f"--{name} {name.upper()}" for name in self.needed)
        return f"usage: {self.prog} {' '.join([*needed, '[options]'])}\n"

    def format_help(self) -> str:
        self.usage = self.format_usage().removeprefix("usage: ").strip().replace("%", "%%")
        return super().format_help()

    def error(self, message: str):
        raise Mistakes([f"{message} ({self.prog} --help tells all options)"])

    def parse_known_args(self, args=None, namespace=None):
        namespace, unknown = super().parse_known_args(self.translate(args or []), namespace)
        if unknown := self.take_unknown(unknown):
            # What stands behind an unknown option was meant to be its value
            options = [text for text in unknown if text.startswith("-")]
            self.error("; ".join(self._tell_unknown(text) for text in options or unknown))
        values, problems = vars(namespace), []
        positional = values.pop("positional", None)
        if positional is not None:
            if values[self.first] is not None:
                problems.append(
                    f"{positional!r} and --{self.first} {values[self.first]} are the same thing: give one."
                )
            values[self.first] = positional
        if missing := [name for name in self.needed if values.get(name) is None]:
            shown = ", ".join(name.upper() if name == self.first else f"--{name}" for name in missing)
            problems.append(f"{shown} must be given ({self.prog} --help tells all options)")
        problems += self.find_problems(values)
        if problems:
            raise Mistakes(problems)
        return namespace, []

    def take_unknown(self, unknown: list[str]) -> list[str]:
        """What remains of unknown arguments when those are taken that mean something elsewhere."""
        return unknown

    def find_problems(self, values: dict[str, Any]) -> list[str]:
        """What is wrong with the arguments' values, beyond what the parser sees."""
        return find_problems(values, self.new_output)

    def translate(self, args: list[str]) -> list[str]:
        """Arguments with the options' names as they are now."""
        translated = []
        for argument in args:
            name, equals, value = argument.partition("=")
            if name.startswith("--"):
                name = "--" + self.name_now(name[2:])
            translated.append(name + equals + value)
        return translated

    def name_now(self, name: str) -> str:
        """The name of an option or a key of a recipe as it is here, with a warning if it was an earlier one."""
        name, known = name.replace("-", "_"), {action.dest for action in self._actions}
        if name not in known and LATER_NAMES.get(name) in known:
            return LATER_NAMES[name]
        for new in EARLIER_NAMES.get(name, ()):
            if new in known:
                logger.warning("%s is called %s now; the earlier name works for one more release.", name, new)
                return new
        return name

    def suggest(self, name: str) -> str:
        """What may have been meant by an unknown name, as an end of a sentence."""
        known = [option[2:] for option in self._option_string_actions if option.startswith("--")]
        close = difflib.get_close_matches(name, known, n=1)
        return f": did you mean {close[0]}?" if close else ""

    def _tell_unknown(self, text: str) -> str:
        if not text.startswith("-"):
            return f"{text!r} belongs to no option"
        name = text.lstrip("-").partition("=")[0]
        suggestion = self.suggest(name).replace("mean ", "mean --")
        return f"there is no option --{name}{suggestion}"


def parse_command(
    arguments_class: type[Arguments],
    arguments: list[str],
    name: str,
    documentation: str,
    first: str | None = None,
    new_output: bool = False,
) -> Arguments:
    """
    The arguments of a sub-command as its dataclass; says where the output will be.

    Args:
        arguments_class (`type`): the dataclass.
        arguments (`list[str]`): what follows the sub-command's name.
        name (`str`): of the sub-command.
        documentation (`str`): of its module, shown as help.
        first (`str`, *optional*): the argument whose value may come first, without the option's name.
        new_output (`bool`): whether the output folder may not hold anything yet.

    Raises:
        Mistakes: with all mistakes that can be seen before anything is read or loaded.
    """
    parser = CommandParser(
        arguments_class, first, new_output, prog=f"aligngpt {name}", description=documentation.strip()
    )
    (parsed,) = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    for output in ("output_dir", "output_file"):
        if getattr(parsed, output, None) is not None:
            logger.info("Output: %s", os.path.abspath(getattr(parsed, output)))
    return parsed
