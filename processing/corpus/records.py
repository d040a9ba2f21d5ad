"""What a record of a corpus holds: its images, its conversation, its caption; shared by scoring and training."""

from typing import Any

from .faults import Fault


PLACEHOLDER = "<image>"  # where LLaVA's texts have an image; templates put images first
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def get_images(record: dict[str, Any]) -> list[Any]:
    """
    The record's `images` or `image`, or those inside its messages, as a list; empty for a text-only record.

    Raises:
        Fault: `missing` if the text has a place for an image, and the record names none.
    """
    for name in ("images", "image"):
        images = record.get(name)
        if images is not None and images != "" and images != []:
            return images if isinstance(images, list) else [images]
    parts = [part for turn in _turns(record) for part in _parts(turn) if part.get("type") == "image"]
    images = [part[name] for part in parts for name in ("image", "path", "url") if part.get(name) is not None]
    if not images and (parts or any(PLACEHOLDER in str(turn.get("value", "")) for turn in _turns(record))):
        raise Fault("missing", "The text has a place for an image, but the record names none.")
    return images


def count_images_per_turn(record: dict[str, Any], num_images: int) -> list[int]:
    """
    How many of the record's images each turn of its conversation has, in order: as many as it has `<image>` or image
    parts. Where no turn says so, all are the first user turn's.

    Raises:
        Fault: `placeholder_count` if the turns have places for another number of images.
    """
    turns = _turns(record)
    counts = [
        sum(part.get("type") == "image" for part in _parts(turn))
        + sum(text.count(PLACEHOLDER) for text in _texts(turn)) * (_role(turn) == "user")  # an answer may be about it
        for turn in turns
    ]
    if not any(counts) and num_images:
        first = next((index for index, turn in enumerate(turns) if _role(turn) == "user"), 0)
        counts = [num_images * (index == first) for index in range(len(turns))]
    if sum(counts) != num_images:
        raise Fault("placeholder_count", f"The text has places for {sum(counts)} images, the record {num_images}.")
    return counts


def check_single(images: list[Any]) -> None:
    """
    Whether there is one image at most.

    Raises:
        Fault: `several_images`.
    """
    if len(images) > 1:
        raise Fault("several_images", f"There are {len(images)} images; a pair is one image and one text.")


def get_level(record: dict[str, Any]) -> Any:
    """The record's `alignment_level`, or `similarity`, the authors' name for it; None if it has neither."""
    level = record.get("alignment_level")
    return record.get("similarity") if level is None else level


def get_messages(record: dict[str, Any]) -> list[dict[str, str]] | None:
    """
    The conversation as messages with `role` and `content`, text without `<image>`; None if the record has only a
    caption.

    Raises:
        Fault: `malformed_record` if a turn is not of that form, `non_string_caption` if a text is no string.
    """
    for name, keys in (("messages", ("role", "content")), ("conversations", ("from", "value"))):
        if record.get(name):
            if not isinstance(record[name], list):
                raise Fault("malformed_record", f"{name} is {record[name]!r}, no list of turns.")
            return [_read_turn(turn, *keys) for turn in record[name]]
    return None


def get_caption(record: dict[str, Any]) -> str:
    """
    The text that describes the image: what the assistant says, else `caption` or `text`.

    Raises:
        Fault: `no_caption`, `empty_caption` or `non_string_caption`, and what `get_messages` raises.
    """
    messages = get_messages(record)
    if messages is not None:
        caption = "\n".join(message["content"] for message in messages if message["role"] == "assistant")
        if not any(message["role"] == "assistant" for message in messages):
            raise Fault("no_caption", "The conversation has no assistant turn.")
    else:
        caption = record.get("text") if record.get("caption") is None else record["caption"]
        if caption is None:
            raise Fault("no_caption", f"There is none of messages, conversations, caption, text: {sorted(record)}")
    if not isinstance(caption, str):
        raise Fault("non_string_caption", f"The caption is {caption!r}, not a string.")
    caption = caption.replace(PLACEHOLDER, "")
    if not caption.strip():
        raise Fault("empty_caption", "The caption is empty.")
    return caption


def _turns(record: dict[str, Any]) -> list[dict[str, Any]]:
    turns = record.get("messages") or record.get("conversations") or []
    return [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []


def _parts(turn: dict[str, Any]) -> list[dict[str, Any]]:
    content = turn.get("content")
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _role(turn: dict[str, Any]) -> str | None:
    return ROLES.get(turn.get("role", turn.get("from")))


def _texts(turn: dict[str, Any]) -> list[str]:
    texts = [turn.get("value"), turn.get("content"), *(part.get("text") for part in _parts(turn))]
    return [text for text in texts if isinstance(text, str)]


def _read_turn(turn: Any, role_key: str, text_key: str) -> dict[str, str]:
    if not isinstance(turn, dict) or role_key not in turn or text_key not in turn:
        raise Fault("malformed_record", f"A turn has no {role_key!r} and {text_key!r}: {turn!r}")
    role, text = turn[role_key], turn[text_key]
    if not isinstance(role, str) or role not in ROLES:
        raise Fault("malformed_record", f"A turn is by {role!r}; known: {sorted(ROLES)}")
    if isinstance(text, list):  # the parts of a multimodal message
        texts = [part.get("text") for part in _parts(turn) if part.get("type") == "text"]
        wrong = [part for part in texts if not isinstance(part, str)]
        text = wrong[0] if wrong else "\n".join(texts)
    if not isinstance(text, str):
        raise Fault("non_string_caption", f"The text of a turn is {text!r}, not a string.")
    if ROLES[role] != "assistant" and PLACEHOLDER in text:
        text = text.replace(PLACEHOLDER, "").strip()
    if role_key == "from":
        text = text.strip()
    return {"role": ROLES[role], "content": text}
