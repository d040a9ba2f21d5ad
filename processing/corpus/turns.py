"""The turns of a conversation, in any of the known forms, as messages of typed parts."""

from dataclasses import dataclass
from typing import Any

from .faults import Fault
from .samples import PLACEHOLDER


ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
TEXT_PARTS = ("text", "input_text", "output_text")
IMAGE_PARTS = ("image", "image_url", "input_image")
SOURCES = ("image", "image_url", "path", "url", "base64", "bytes")  # of a part: where its image is
# Turns and parts may have these beside what is read of them; any other field may say what to see, or what to learn
NOTES_OF_TURNS = ("name", "id", "date", "timestamp", "model", "lang", "language")
READ_OF_PARTS = ("type", "text", "index", *SOURCES)
NOTES_OF_PARTS = ("detail", "cache_control", "annotations")


@dataclass(frozen=True)
class Place:
    """Of an image that the record lists elsewhere: the next one, or the one of a number."""

    index: int | None = None


def read_turn(turn: Any, interleaved: bool) -> tuple[dict[str, Any], list[Any]]:
    """
    A turn as a message, and the sources of its images: a [`Place`] where only that is said.

    Raises:
        Fault: if it is of no known form; the message says what of it.
    """
    keys = ("from", "value") if isinstance(turn, dict) and "from" in turn else ("role", "content")
    if not isinstance(turn, dict) or any(key not in turn for key in keys):
        raise Fault("malformed_record", f"A turn has neither role and content nor from and value: {turn!r}")
    role, content = (turn[key] for key in keys)
    if not isinstance(role, str) or role not in ROLES:
        raise Fault("malformed_record", f"A turn is by {role!r}; known: {sorted(ROLES)}")
    for name in turn:
        if name not in keys and name not in ("weight", *NOTES_OF_TURNS) and not is_absent(turn[name]):
            raise Fault("unknown_part", f"A turn by the {ROLES[role]} has {name!r}, which is not read.")
    weight = _read_weight(turn.get("weight"), ROLES[role])
    parts = [_read_part(part) for part in content] if isinstance(content, list) else [(content, None)]
    texts = [text for text, _ in parts if text is not None or not isinstance(content, list)]
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise Fault("non_string_caption", f"The text of a turn is {wrong[0]!r}, not a string.")
    if ROLES[role] == "user" and any(PLACEHOLDER in text for text in texts):
        if len(parts) != len(texts):
            raise Fault("placeholder_count", f"A turn has both image parts and {PLACEHOLDER} in its text.")
        parts = _split("".join(texts), interleaved)
    elif ROLES[role] == "system" and any(PLACEHOLDER in text for text in texts):
        raise Fault("malformed_record", f"A system message has {PLACEHOLDER} in its text; images are a user's.")
    if ROLES[role] != "user" and len(parts) != len(texts):
        raise Fault("malformed_record", f"A turn by the {ROLES[role]} has an image; images are a user's.")
    if ROLES[role] == "assistant" and weight and not "".join(texts).strip():
        raise Fault("empty_caption", "What the assistant says is empty.")
    read = [{"type": "image"} if text is None else {"type": "text", "text": text} for text, _ in parts]
    return {"role": ROLES[role], "content": read, "weight": weight}, [source for text, source in parts if text is None]


def _read_weight(weight: Any, role: str) -> int:
    """0 for an answer that is not trained on, as OpenAI's and axolotl's data have it."""
    if weight is None:
        return 1
    if weight not in (0, 1) or (weight and role != "assistant"):
        raise Fault("malformed_record", f"A turn by the {role} has weight {weight!r}; known is 0 or 1, of answers.")
    return int(weight) if role == "assistant" else 1


def _read_part(part: Any) -> tuple[str | None, Any]:
    """A part's text and None, or None and the source of its image."""
    if not isinstance(part, dict) or part.get("type") is None:
        raise Fault("malformed_record", f"A part of a message has no type: {str(part)[:200]}")
    kind = part["type"]
    found = [name for name in SOURCES if not is_absent(part.get(name))]
    for name in part:
        if name not in READ_OF_PARTS and name not in NOTES_OF_PARTS and not is_absent(part[name]):
            raise Fault("unknown_part", f"A part of type {kind!r} has {name!r}, which is not read.")
    if kind in TEXT_PARTS:
        if found:
            raise Fault("malformed_record", f"A part of type {kind!r} has {found[0]!r}, as an image has.")
        text = part.get("text")
        if not isinstance(text, str):
            raise Fault("non_string_caption", f"The text of a turn is {text!r}, not a string.")
        return text, None
    if kind not in IMAGE_PARTS:
        raise Fault("unknown_part", f"A part of a message is of type {kind!r}; known: {[*TEXT_PARTS, *IMAGE_PARTS]}")
    if not is_absent(part.get("text")) or len(found) > 1:
        raise Fault("malformed_record", f"A part of type {kind!r} has {sorted(part)}; known is one of {SOURCES}.")
    if not found:
        return None, Place(part.get("index"))
    return None, f"data:image;base64,{part['base64']}" if found == ["base64"] else part[found[0]]


def _split(text: str, interleaved: bool) -> list[tuple[str | None, Place | None]]:
    """A text with `<image>` as parts: in their places, or first, as the authors' code has them."""
    first, *others = text.strip().split(PLACEHOLDER)
    if not interleaved:
        return [(None, Place())] * len(others) + [(text.replace(PLACEHOLDER, "").strip(), None)]
    parts = [(first, None)]
    for piece in others:  # templates write a newline after an image
        parts += [(None, Place()), (piece.removeprefix("\n"), None)]
    return [part for part in parts if part[0] != ""]


def is_absent(value: Any) -> bool:
    """Whether a field says nothing: null, empty, or an image of nothing, as tables have it."""
    if isinstance(value, dict):
        return all(is_absent(inner) for inner in value.values())
    return value is None or (isinstance(value, str | list | tuple) and len(value) == 0)
