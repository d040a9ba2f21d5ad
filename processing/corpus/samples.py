"""A record that was read: the one form that all steps take."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets

from .faults import Fault


PLACEHOLDER = "<image>"  # where texts have an image


@dataclass
class Sample:
    """
    A record that can be read.

    Args:
        id (`str`, *optional*): the record's own; ids need not be unique.
        messages (`list[dict]`): turns of `role` (system, user, assistant), `content`, a list of parts in their order
            (`{"type": "image"}`, `{"type": "text", "text": ...}`), and `weight`, 0 where an answer is not trained on.
            A caption is the answer to a user who shows the images.
        images (`list`): a source for each image part, in their order: a path, `{"bytes": ..., "path": ...}`, or a
            picture in memory. [`~aligngpt.processing.corpus.images.open_image`] opens them.
        level (`int`, *optional*): the alignment level that the record came with. Its range is not looked at here: N is
            not known.
        score (`float`, *optional*): the alignment score that the record came with.
        has_question (`bool`): False for a caption, which has no conversation.
        notes (`list[str]`): what reading changed, for reports to count: `leading_answer_dropped` (LLaVA's data; the
            authors' code skips a first turn by the assistant), `level_without_image` (a level or score of a text-only
            record, which means nothing).
    """

    id: str | None
    messages: list[dict[str, Any]]
    images: list[Any] = field(default_factory=list)
    level: int | None = None
    score: float | None = None
    has_question: bool = True
    notes: list[str] = field(default_factory=list)

    @property
    def caption(self) -> str:
        """
        The text that describes the images: what the assistant says, as far as it is trained on.

        Raises:
            Fault: `no_caption`.
        """
        answers = [turn for turn in self.messages if turn["role"] == "assistant" and turn["weight"] != 0]
        if not answers:
            raise Fault("no_caption", "The conversation has no assistant turn that is trained on.", self.id)
        return "\n".join(text_of(turn["content"]) for turn in answers)

    def written_messages(self) -> list[dict[str, Any]] | None:
        """
        The messages with strings for contents, as `read_record` reads them again, and `weight`, None for 1; None for
        a caption. `<image>` is written where an image is not before the first user's text, its place if none is said.
        """
        if not self.has_question:
            return None
        first = next((turn for turn in self.messages if turn["role"] == "user"), {"content": []})
        leading = [part["type"] for part in first["content"][: len(self.images)]]
        is_usual = leading == ["image"] * len(self.images)
        return [
            {
                "role": turn["role"],
                "content": text_of(turn["content"], "" if is_usual else PLACEHOLDER),
                "weight": None if turn["weight"] else 0,
            }
            for turn in self.messages
        ]


def text_of(content: list[dict[str, str]], placeholder: str = "") -> str:
    """A content's texts, with something in the place of images."""
    return "".join(part["text"] if part["type"] == "text" else placeholder for part in content)


def escape_placeholders(text: str, placeholders: Sequence[str]) -> str:
    """A placeholder that is written in a text is about markup, and none; a space keeps it from becoming one."""
    for token in placeholders:
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def check_single(images: list[Any]) -> None:
    """
    Whether there is one image at most.

    Raises:
        Fault: `several_images`.
    """
    if len(images) > 1:
        raise Fault("several_images", f"There are {len(images)} images; a pair is one image and one text.")


def stored_image(image: Any, embedded: bool, keep_bytes: bool = True) -> str | dict[str, Any]:
    """A sample's image as a table has it: a path or, where its column holds bytes, `{"bytes": ..., "path": ...}`."""
    if not embedded:
        if not isinstance(image, str):
            raise Fault("malformed_record", "The image is a picture or bytes, where the data have paths.")
        return image
    if isinstance(image, str):
        image = {"bytes": None, "path": image}
    elif not isinstance(image, dict):
        image = datasets.Image().encode_example(image)
    return {"bytes": image.get("bytes") if keep_bytes else None, "path": image.get("path")}
