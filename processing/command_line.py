"""How every sub-command of `aligngpt` reads its arguments."""

from typing import TypeVar

from transformers import HfArgumentParser


Arguments = TypeVar("Arguments")


def parse_command(
    arguments_class: type[Arguments],
    arguments: list[str] | None,
    name: str,
    documentation: str,
    first: str | None = None,
) -> Arguments:
    """
    The arguments of a sub-command as its dataclass.

    Args:
        arguments_class (`type`): the dataclass.
        arguments (`list[str]`, *optional*): what follows the sub-command's name; by default the process's arguments.
        name (`str`): of the sub-command.
        documentation (`str`): of its module; the first paragraph is shown as help.
        first (`str`, *optional*): the option whose value may come first, without the option's name.
    """
    if first is not None and arguments and not arguments[0].startswith("-"):
        arguments = [first, *arguments]
    parser = HfArgumentParser(arguments_class, prog=f"aligngpt {name}", description=documentation.split("\n\n")[0])
    return parser.parse_args_into_dataclasses(arguments)[0]
