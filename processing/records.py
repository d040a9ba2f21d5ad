"""What a record of a corpus holds: its images, its conversation, its caption; shared by scoring and training."""

from typing import Any


ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class PairFault(ValueError):
    """
    Why a record cannot be used: `kind`, a word that reports count by, and a message with what was found.

    Kinds of images: `missing`, `outside_image_folder`, `zero_sized`, `truncated`, `corrupt`, `decompression_bomb`,
    `extreme_shape`, `several_images`. Of captions: `no_caption`, `empty_caption`, `non_string_caption`. Of records:
    `malformed_record`, and `broken_shard` where the rest of a file cannot be read.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind

    def __reduce__(self):  # exceptions with two arguments do not survive a worker process otherwise
        return type(self), (self.kind, str(self))


def get_images(record: dict[str, Any]) -> list[Any]:
    """The record's `images` or `image`, as a list; empty for a text-only record."""
    for name in ("images", "image"):
        images = record.get(name)
        if images is not None and not (isinstance(images, list) and not images):
            return images if isinstance(images, list) else [images]
    return []


def get_messages(record: dict[str, Any]) -> list[dict[str, str]] | None:
    """
    The conversation as messages with `role` and `content` (text, without `<image>` where LLaVA's `conversations` have
    it); None if the record has only a caption.

    Raises:
        PairFault: `malformed_record` if a turn is not of that form, `non_string_caption` if a text is no string.
    """
    if record.get("messages"):
        turns = [_read_turn(record, turn, "role", "content") for turn in record["messages"]]
    elif record.get("conversations"):
        turns = [_read_turn(record, turn, "from", "value") for turn in record["conversations"]]
        turns = [turn | {"content": turn["content"].replace("<image>", "").strip()} for turn in turns]
    else:
        return None
    return turns


def get_caption(record: dict[str, Any]) -> str:
    """
    The text that describes the image: what the assistant says, else `caption` or `text`.

    Raises:
        PairFault: `no_caption`, `empty_caption` or `non_string_caption`, and what `get_messages` raises.
    """
    messages = get_messages(record)
    if messages is not None:
        caption = "\n".join(message["content"] for message in messages if message["role"] == "assistant")
        if not any(message["role"] == "assistant" for message in messages):
            raise PairFault("no_caption", "The conversation has no assistant turn.")
    else:
        caption = record.get("caption", record.get("text"))
        if caption is None:
            raise PairFault("no_caption", f"There is none of messages, conversations, caption, text: {sorted(record)}")
    if not isinstance(caption, str):
        raise PairFault("non_string_caption", f"The caption is {caption!r}, not a string.")
    if not caption.strip():
        raise PairFault("empty_caption", "The caption is empty.")
    return caption


def _read_turn(record: dict[str, Any], turn: Any, role_key: str, text_key: str) -> dict[str, str]:
    if not isinstance(turn, dict) or role_key not in turn or text_key not in turn:
        raise PairFault("malformed_record", f"A turn has no {role_key!r} and {text_key!r}: {turn!r}")
    if turn[role_key] not in ROLES:
        raise PairFault("malformed_record", f"A turn is by {turn[role_key]!r}; known: {sorted(ROLES)}")
    text = turn[text_key]
    if isinstance(text, list):  # the parts of a multimodal message
        text = "\n".join(part["text"] for part in text if isinstance(part, dict) and part.get("type") == "text")
    if not isinstance(text, str):
        raise PairFault("non_string_caption", f"The text of a turn is {text!r}, not a string.")
    return {"role": ROLES[turn[role_key]], "content": text}
