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
from .samples import Sample, text_of
from .turns import Place, is_absent, read_turn


# A record may have any fields beside those that are read, but not these: the conversation would lack something
NOT_READ = ("video", "videos", "audio", "audios", "tools", "functions", "system", "system_prompt", "system_message")
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
    name = None
    try:
        name = record.get("id") if isinstance(record, dict) else None
        name = None if name is None else str(name)
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
        message, inside = read_turn(turn, interleaved)
        if number == 0 and message["role"] == "assistant" and "from" in turn:
            notes.append("leading_answer_dropped")
            continue
        messages.append(message)
        sources += inside
    images = _fill_places(messages, sources, _listed_images(record))
    level, score = _read_level(record)
    if not images and (level, score) != (None, None):
        level = score = None
        notes.append("level_without_image")
    paths = (image.get("path") if isinstance(image, dict) else image for image in images)
    _check_unicode(name, *(text_of(message["content"]) for message in messages), *paths)
    return Sample(name, messages, images, level, score, has_question, notes)


def _check_fields(record: Any) -> None:
    if not isinstance(record, dict):
        raise Fault("malformed_record", f"The row is {record!r}, no object.")
    for name in NOT_READ:
        if not is_absent(record.get(name)):
            raise Fault("unknown_part", f"The record has {name!r}, which is not read.")


def _find_turns(record: dict[str, Any]) -> tuple[list[Any], bool]:
    """The turns of a conversation, or those that a caption stands for; and which of the two."""
    found = [name for name in ("messages", "conversations") if not is_absent(record.get(name))]
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


def _listed_images(record: dict[str, Any]) -> list[Any]:
    found = {name: record[name] for name in ("images", "image") if not is_absent(record.get(name))}
    lists = [list(value) if _is_list(value) else [value] for value in found.values()]
    if len(lists) == 2 and lists[0] != lists[1]:
        raise Fault("malformed_record", "The record has both image and images, which differ: which of them counts?")
    return lists[0] if lists else []


def _fill_places(messages: list[dict[str, Any]], sources: list[Any], listed: list[Any]) -> list[Any]:
    """The images in the order of their places: those inside the parts, and those that the record lists for others."""
    if listed and not sources:  # no turn says whose they are: the first user's
        user = next((turn for turn in messages if turn["role"] == "user"), None)
        if user is None:
            is_led = bool(messages) and messages[0]["role"] == "system"
            messages.insert(int(is_led), user := {"role": "user", "content": [], "weight": 1})
        user["content"][:0] = [{"type": "image"}] * len(listed)
        sources = [Place() for _ in listed]
    places = [source for source in sources if isinstance(source, Place)]
    if places and not listed:
        raise Fault("missing", "The text has a place for an image, but the record names none.")
    order = [number if place.index is None else place.index for number, place in enumerate(places)]
    is_repeated = not places and [*map(_read_source, listed)] == [*map(_read_source, sources)]
    if {*order} != {*range(len(listed))} and not is_repeated:
        raise Fault(
            "placeholder_count", f"The text has places for the images {order}, the record {len(listed)} to put there."
        )
    chosen = iter(order)
    return [_read_source(listed[next(chosen)] if isinstance(s, Place) else s) for s in sources]


def _read_source(source: Any) -> Any:
    """An image's source in its plainest form; what it holds is looked at when it is opened."""
    if isinstance(source, dict):
        if source.get("bytes") is not None:
            if not isinstance(source["bytes"], bytes):
                kind = type(source["bytes"]).__name__
                raise Fault("malformed_record", f"The bytes of an image are of type {kind}; base64 is a part's.")
            return {"bytes": source["bytes"], "path": source.get("path")}
        source = next((source[key] for key in ("path", "url") if not is_absent(source.get(key))), None)
    if is_absent(source):
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


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype == object)


def _check_unicode(*values: Any) -> None:
    """JSON can hold half of a character that is two; neither a tokenizer nor a file takes it."""
    for value in values:
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise Fault("malformed_record", f"{value[:200]!r} is no Unicode text: {error}") from error
