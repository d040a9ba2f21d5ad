"""
What a record means. Every reader of data - scoring, levels, both stages, `--check`, `inspect`, calibration - reads a
record by [`read_record`], into a [`Sample`] or a [`Fault`], so that one file means one thing everywhere.

Known forms, as docs/data.md shows them: a caption (`caption`, `text`); LLaVA's `conversations`; `messages` whose
content is a string or typed parts, OpenAI's among them. Images are in `image` or `images`, or inside the parts.
"""

import math
import numbers
from typing import Any

import numpy as np
from PIL import Image

from .faults import Fault
from .samples import PLACEHOLDER, Sample, text_of


ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
TEXT_PARTS = ("text", "input_text", "output_text")
IMAGE_PARTS = ("image", "image_url", "input_image")
SOURCES = ("image", "image_url", "path", "url", "base64", "bytes")  # of a part: where its image is
# What would vanish from the conversation if it were passed over
NOT_READ_IN_RECORDS = ("video", "videos", "audio", "audios", "tools", "functions", "system")
NOT_READ_IN_TURNS = ("tool_calls", "function_call", "tool_call_id", "audio", "refusal", "reasoning_content")
MAX_LEVEL = 2**31  # anything above is a mistake, and need not fit into a column


def read_record(record: dict[str, Any] | Fault, interleaved: bool = False) -> Sample | Fault:
    """
    What a record means, or why it means nothing; never an exception.

    Args:
        record (`dict` or `Fault`): a row of [`~aligngpt.processing.corpus.sources.open_corpus`].
        interleaved (`bool`): whether `<image>` in a string stays in its place. By default it comes first in its
            message, as in the authors' code. Typed parts keep their order anyway.
    """
    if isinstance(record, Fault):
        return record
    name = record.get("id") if isinstance(record, dict) else None
    name = None if name is None else str(name)
    try:
        return _read(record, name, interleaved)
    except Fault as fault:
        fault.id = name
        return fault
    except Exception as error:  # one record in a billion that nobody thought of does not end the run
        return Fault("unexpected", f"{type(error).__name__}: {error}", name)


def _read(record: dict[str, Any], name: str | None, interleaved: bool) -> Sample:
    _check_fields(record)
    turns, has_question = _find_turns(record)
    messages, sources, notes = [], [], []
    for number, turn in enumerate(turns):
        message, inside = _read_turn(turn, interleaved)
        if number == 0 and message["role"] == "assistant" and "from" in turn:
            notes.append("leading_answer_dropped")
            continue
        messages.append(message)
        sources += inside
    images = _fill_places(messages, sources, _listed_images(record))
    level, score = _read_level(record)
    _check_unicode(name, *(text_of(message["content"]) for message in messages), *images)
    return Sample(name, messages, images, level, score, has_question, notes)


def _check_fields(record: Any) -> None:
    if not isinstance(record, dict):
        raise Fault("malformed_record", f"The row is {record!r}, no object.")
    for name in NOT_READ_IN_RECORDS:
        if not _is_absent(record.get(name)):
            raise Fault("unknown_part", f"The record has {name!r}, which is not read.")


def _find_turns(record: dict[str, Any]) -> tuple[list[Any], bool]:
    """The turns of a conversation, or those that a caption stands for; and which of the two."""
    found = [name for name in ("messages", "conversations") if not _is_absent(record.get(name))]
    if len(found) == 2:
        raise Fault("malformed_record", "The record has both messages and conversations: which of them counts?")
    if found:
        if not isinstance(turns := record[found[0]], list):
            raise Fault("malformed_record", f"{found[0]} is {turns!r}, no list of turns.")
        return turns, True
    caption = record.get("text") if record.get("caption") is None else record["caption"]
    if caption is None:
        raise Fault("no_caption", f"There is none of messages, conversations, caption, text: {sorted(record)}")
    if not isinstance(caption, str):
        raise Fault("non_string_caption", f"The caption is {caption!r}, not a string.")
    if not caption.strip():
        raise Fault("empty_caption", "The caption is empty.")
    return [{"role": "user", "content": []}, {"role": "assistant", "content": caption}], False


def _read_turn(turn: Any, interleaved: bool) -> tuple[dict[str, Any], list[Any]]:
    """A turn as a message, and the sources of its images: None where only their place is said."""
    keys = ("from", "value") if isinstance(turn, dict) and "from" in turn else ("role", "content")
    if not isinstance(turn, dict) or any(key not in turn for key in keys):
        raise Fault("malformed_record", f"A turn has neither role and content nor from and value: {turn!r}")
    role, content = (turn[key] for key in keys)
    if not isinstance(role, str) or role not in ROLES:
        raise Fault("malformed_record", f"A turn is by {role!r}; known: {sorted(ROLES)}")
    for name in NOT_READ_IN_TURNS:
        if not _is_absent(turn.get(name)):
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
    found = [name for name in SOURCES if not _is_absent(part.get(name))]
    if kind in TEXT_PARTS:
        if found:
            raise Fault("malformed_record", f"A part of type {kind!r} has {found[0]!r}, as an image has.")
        text = part.get("text")
        if not isinstance(text, str):
            raise Fault("non_string_caption", f"The text of a turn is {text!r}, not a string.")
        return text, None
    if kind not in IMAGE_PARTS:
        raise Fault("unknown_part", f"A part of a message is of type {kind!r}; known: {[*TEXT_PARTS, *IMAGE_PARTS]}")
    if not _is_absent(part.get("text")) or len(found) > 1 or not _is_absent(part.get("file_id")):
        raise Fault("malformed_record", f"A part of type {kind!r} has {sorted(part)}; known is one of {SOURCES}.")
    source = part[found[0]] if found else None
    return None, f"data:image;base64,{source}" if found == ["base64"] else source


def _split(text: str, interleaved: bool) -> list[tuple[str | None, None]]:
    """A text with `<image>` as parts: in their places, or first, as the authors' code has them."""
    first, *others = text.strip().split(PLACEHOLDER)
    if not interleaved:
        return [(None, None)] * len(others) + [(text.replace(PLACEHOLDER, "").strip(), None)]
    parts = [(first, None)]
    for piece in others:  # templates write a newline after an image
        parts += [(None, None), (piece.removeprefix("\n"), None)]
    return [part for part in parts if part[0] != ""]


def _listed_images(record: dict[str, Any]) -> list[Any]:
    found = {name: record[name] for name in ("images", "image") if not _is_absent(record.get(name))}
    lists = [list(value) if isinstance(value, list | tuple) else [value] for value in found.values()]
    if len(lists) == 2 and lists[0] != lists[1]:
        raise Fault("malformed_record", "The record has both image and images, which differ: which of them counts?")
    return lists[0] if lists else []


def _fill_places(messages: list[dict[str, Any]], sources: list[Any], listed: list[Any]) -> list[Any]:
    """The images in the order of their places: those inside the parts, and those that the record lists for others."""
    num_listed, num_open = len(listed), sum(_is_absent(source) for source in sources)
    if num_listed and not sources:  # no turn says whose they are: the first user's
        user = next((turn for turn in messages if turn["role"] == "user"), None)
        if user is None:
            messages.insert(0, user := {"role": "user", "content": [], "weight": 1})
        user["content"][:0] = [{"type": "image"}] * num_listed
        sources, num_open = [None] * num_listed, num_listed
    if num_open and not num_listed:
        raise Fault("missing", "The text has a place for an image, but the record names none.")
    is_repeated = num_open == 0 and [*map(_read_source, listed)] == [*map(_read_source, sources)]
    if num_open != num_listed and not is_repeated:
        raise Fault(
            "placeholder_count", f"The text has places for {num_open} images, the record {num_listed} to put there."
        )
    remaining = iter(listed)
    return [_read_source(next(remaining) if _is_absent(source) else source) for source in sources]


def _read_source(source: Any) -> Any:
    """An image's source in its plainest form; what it holds is looked at when it is opened."""
    if isinstance(source, dict):
        if not _is_absent(source.get("bytes")):
            return {"bytes": source["bytes"], "path": source.get("path")}
        source = next((source[key] for key in ("path", "url") if not _is_absent(source.get(key))), None)
    if _is_absent(source):
        raise Fault("missing", "An image of the record is null.")
    if isinstance(source, str | bytes | Image.Image | np.ndarray) or hasattr(source, "__array__"):
        return source
    raise Fault("missing", f"An image is a path, bytes or a picture, not {type(source).__name__}.")


def _read_level(record: dict[str, Any]) -> tuple[int | None, float | None]:
    """
    Level and score. `similarity` is the authors' name of a level; LAION's data have a score under it, which is told by
    not being an integer.
    """
    level, score, similarity = (record.get(name) for name in ("alignment_level", "alignment_score", "similarity"))
    if level is None and similarity is not None:
        if _is_number(similarity) and abs(similarity) <= 1 and similarity != int(similarity):
            score = similarity if score is None else score
        else:
            level = similarity
    if level is not None and not (_is_number(level) and abs(level) < MAX_LEVEL and level == int(level)):
        raise Fault("malformed_record", f"The alignment level is {level!r}, not an integer.")
    if score is not None and not (_is_number(score) and math.isfinite(score)):
        raise Fault("malformed_record", f"The alignment score is {score!r}, no number.")
    return None if level is None else int(level), None if score is None else float(score)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_) and value == value


def _is_absent(value: Any) -> bool:
    """Whether a field says nothing: null, empty, or an image of nothing, as tables have it."""
    if isinstance(value, dict):
        return all(_is_absent(inner) for inner in value.values())
    return value is None or (isinstance(value, str | bytes | list | tuple) and len(value) == 0)


def _check_unicode(*values: Any) -> None:
    """JSON can hold half of a character that is two; neither a tokenizer nor a file takes it."""
    for value in values:
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise Fault("malformed_record", f"{value[:200]!r} is no Unicode text: {error}") from error
