"""The chat in a terminal: what can be typed, what is shown."""

import json
import logging
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from aligngpt.processing.atomic_output import replacing
from aligngpt.processing.image_conversion_aligngpt import load_rgb_image
from aligngpt.processing.image_loading_aligngpt import read_image

from .answering import Assistant, PromptTooLongError
from .arguments import ChatArguments, read_level
from .bars import draw_bars


if TYPE_CHECKING:
    from PIL import Image
    from transformers import BatchFeature


logger = logging.getLogger(__name__)

TIMEOUT = 30  # seconds, for a picture of a URL
HISTORY = Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local" / "state"), "aligngpt", "chat_history")


class Terminal:
    """
    A conversation on the console, until Ctrl-D or `/quit`.

    Args:
        assistant ([`Assistant`]): who answers.
        arguments ([`ChatArguments`]): level, system message and pictures to begin with, sampling.
        console (`rich.console.Console`, *optional*): to write to.
    """

    def __init__(self, assistant: Assistant, arguments: ChatArguments, console: Console | None = None):
        self.assistant, self.arguments = assistant, arguments
        self.console = Console(highlight=False) if console is None else console
        self.level: int | str = self._checked_level(arguments.level)
        self.messages: list[dict[str, Any]] = []
        self.pictures: list[tuple[str, Image.Image]] = []  # for the next question
        self.inputs: BatchFeature | None = None  # of the last question
        # A command's arguments, its line in the help, what runs it
        self.commands: dict[str, tuple[str, str, Callable[[str], None]]] = {
            "image": ("FILE|URL ...", "show pictures with the next question", self.add_images),
            "level": ("N|worst|best|auto", "ask for an alignment level, or let the gate choose", self.set_level),
            "weights": ("", "how the gate mixed the levels for the last question", self.show_weights),
            "regenerate": ("", "answer the last question again", self.regenerate),
            "reset": ("", "forget the conversation and its pictures", self.reset),
            "save": ("FILE", "write the conversation as a record", self.save),
            "help": ("", "this list", self.show_help),
            "quit": ("", "end; so does Ctrl-D", lambda _: None),
        }

    def run(self) -> None:
        """Reads and answers until the end of the input."""
        self._remember_lines()
        num_levels = self.assistant.model.config.num_alignment_levels
        self.console.print(
            f"{escape(self.arguments.model)}: levels 0 (worst) to {num_levels - 1} (best), now {self.level}. "
            "/help tells what can be typed; Ctrl-C stops an answer, Ctrl-D ends."
        )
        if self.arguments.image:
            self._try(lambda: self._add(self.arguments.image))
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                self.console.print()
                return
            except KeyboardInterrupt:
                self.console.print("\n(Ctrl-D ends)")
                continue
            name, _, rest = line[1:].partition(" ")
            if line.startswith("/") and name == "quit":
                return
            if line.startswith("/") and name in self.commands:
                self._try(lambda call=self.commands[name][2], rest=rest: call(rest.strip()))
            elif line.startswith("/"):
                self.console.print(f"There is no /{escape(name)}; /help lists all. Begin with a space to ask it.")
            elif line:
                self._try(lambda line=line: self.ask(line))

    def ask(self, question: str) -> None:
        """Answers a question about the pictures so far and those that were added for it."""
        content = [{"type": "image", "image": picture, "source": name} for name, picture in self.pictures]
        asked = {"role": "user", "content": [*content, {"type": "text", "text": question}]}
        self._answer([*self.messages, asked])
        self.pictures = []

    def _answer(self, messages: list[dict[str, Any]]) -> None:
        system = [{"role": "system", "content": [{"type": "text", "text": self.arguments.system}]}]
        conversation = [*(system if self.arguments.system is not None else []), *map(_without_sources, messages)]
        inputs = self.assistant.prepare([conversation], self.level)
        stop, pieces = Event(), []
        stream = self.assistant.stream(inputs, self.arguments, stop)
        try:
            for piece in stream:
                pieces.append(piece)
                self.console.print(piece, end="", markup=False, soft_wrap=True)
        except KeyboardInterrupt:
            stop.set()
            pieces += stream  # what was still on its way
            self.console.print(" [dim](stopped)[/dim]", end="")
        self.console.print()
        # Only now: a question that could not be answered is not part of the conversation
        self.messages = [
            *messages,
            {"role": "assistant", "content": [{"type": "text", "text": "".join(pieces).strip()}]},
        ]
        self.inputs = inputs

    def add_images(self, text: str) -> None:
        """`/image`."""
        names = shlex.split(text)
        if not names:
            raise ValueError("Which picture? /image FILE or /image URL; several with spaces between.")
        self._add(names)

    def _add(self, names: list[str]) -> None:
        opened = []
        for name in names:
            try:
                picture = load_rgb_image(read_image(os.path.expanduser(name), timeout=TIMEOUT))[0]
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            opened.append((name, picture))
        self.pictures += opened
        for name, picture in opened:
            self.console.print(f"{escape(name)}, {picture.width} x {picture.height}: shown with the next question.")

    def set_level(self, text: str) -> None:
        """`/level`."""
        if text:
            self.level = self._checked_level(text)
        self.console.print(f"Level: {self.level}.")

    def _checked_level(self, text: str) -> int | str:
        level = read_level(text)
        number = self.assistant.processor.read_alignment_level(level)
        return "auto" if number == -1 else level

    def show_weights(self, _: str) -> None:
        """`/weights`."""
        if self.inputs is None:
            raise ValueError("Nothing was asked yet.")
        config, weights = self.assistant.model.config, self.assistant.weights(self.inputs)
        reason = self.assistant.why_no_gate(self.inputs, weights)
        if reason is None:
            best = config.num_alignment_levels - 1
            self.console.print(f"The gate's mix of the levels below {best}, whose vector is always there:")
            self.console.print(draw_bars(weights[0].tolist()), markup=False)
            return
        told = {
            "no picture": "The conversation had no picture: no gate ran.",
            "level": "A level was asked for: the gate did not run.",
            "mode": f"This model has no gate that chooses: its alignment_mode is {config.alignment_mode!r}.",
        }
        self.console.print(told[reason])

    def regenerate(self, _: str) -> None:
        """`/regenerate`."""
        if not self.messages:
            raise ValueError("Nothing was asked yet.")
        self._answer(self.messages[:-1])

    def reset(self, _: str) -> None:
        """`/reset`."""
        self.messages, self.pictures, self.inputs = [], [], None
        self.console.print("A new conversation.")

    def save(self, text: str) -> None:
        """`/save`."""
        if not text:
            raise ValueError("Where to? /save FILE.")
        path = Path(os.path.expanduser(text))
        messages = [
            {
                "role": message["role"],
                "content": [
                    {"type": "image", "path": part["source"]} if part["type"] == "image" else part
                    for part in message["content"]
                ],
            }
            for message in self.messages
        ]
        if self.arguments.system is not None:
            messages.insert(0, {"role": "system", "content": self.arguments.system})
        record = {"model": self.arguments.model, "level": self.level, "messages": messages}
        with replacing(path) as temporary:  # in a line: a record that every command reads
            temporary.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
        self.console.print(f"Written to {escape(str(path))}.")

    def show_help(self, _: str) -> None:
        """`/help`."""
        for name, (arguments, text, _) in self.commands.items():
            self.console.print(f"  /{name} {arguments}".ljust(30) + text, markup=False)

    def _try(self, call: Callable[[], None]) -> None:
        """A mistake is told, and the conversation goes on as it was; so it does if Ctrl-C comes before an answer."""
        try:
            call()
        except KeyboardInterrupt:
            self.console.print("(stopped)")
        except (ValueError, OSError) as error:
            self.console.print(str(error), markup=False, style="red", soft_wrap=True)
            if isinstance(error, PromptTooLongError):
                self.console.print("/reset begins anew.")

    def _remember_lines(self) -> None:
        """Arrow keys, and the questions of earlier conversations, where Python has readline."""
        try:
            import readline
        except ImportError:  # Windows: its console has a history of its own
            return
        import atexit

        try:
            HISTORY.parent.mkdir(parents=True, exist_ok=True)
            HISTORY.touch(mode=0o600)
            readline.read_history_file(HISTORY)
        except OSError as error:
            logger.warning("The questions are not remembered: %s: %s", HISTORY, error.strerror)
            return
        readline.set_history_length(1000)
        atexit.register(readline.write_history_file, HISTORY)


def _without_sources(message: dict[str, Any]) -> dict[str, Any]:
    parts = [{key: value for key, value in part.items() if key != "source"} for part in message["content"]]
    return {**message, "content": parts}
