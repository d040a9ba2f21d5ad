"""What a user says, in any of the forms that records have, as a conversation that the processor takes."""

from collections.abc import Callable
from typing import Any

from PIL import Image

from aligngpt.processing.corpus.faults import Fault
from aligngpt.processing.corpus.records import read_record
from aligngpt.processing.corpus.samples import Sample


QUESTION_FIELDS = ("question", "text")


def read_conversation(messages: list[Any]) -> Sample:
    """
    Messages, OpenAI's or of typed parts, that end with a user's.

    Raises:
        Fault: if they are of no known form, or nothing is asked; the message says what of them.
    """
    if not isinstance(messages, list) or not messages:
        raise Fault("malformed_record", f"messages is {str(messages)[:200]!r}, no list of messages.")
    # Earlier answers are what they are, also empty ones: nothing is learnt from them
    turns = [
        {**turn, "weight": 0} if isinstance(turn, dict) and turn.get("role") == "assistant" else turn
        for turn in messages
    ]
    sample = read_record({"messages": turns})
    if isinstance(sample, Fault):
        raise sample
    if sample.messages[-1]["role"] != "user":
        raise Fault("malformed_record", f"The last message is by the {sample.messages[-1]['role']}, not by the user.")
    return sample


def read_question(record: Any) -> tuple[Sample, str | None]:
    """
    A record as a question, and the answer that it came with: what the assistant says last, if the record ends so.
    Beside the forms of every corpus there is LLaVA's of questions: `question_id`, `image` and `text` (or `question`).

    Raises:
        Fault: if nothing can be asked.
    """
    if isinstance(record, Fault):
        raise record
    asked = [name for name in QUESTION_FIELDS if isinstance(record, dict) and record.get(name) is not None]
    has_turns = isinstance(record, dict) and any(record.get(name) for name in ("messages", "conversations"))
    if asked and not has_turns and ("question" in asked or "question_id" in record):
        if len(asked) == 2:
            raise Fault("malformed_record", "The record has both question and text: which of them is asked?")
        name = record.get("question_id") if record.get("id") is None else record["id"]
        rest = {key: value for key, value in record.items() if key not in asked}
        record = {**rest, "id": name, "messages": [{"role": "user", "content": record[asked[0]]}]}
    sample = read_record(record)
    if isinstance(sample, Fault):
        raise sample
    if not sample.has_question:
        raise Fault("malformed_record", "The record has a caption, and nothing is asked.", sample.id)
    reference = None
    if sample.messages[-1]["role"] == "assistant":
        reference = "".join(part["text"] for part in sample.messages.pop()["content"])
    if not sample.messages or sample.messages[-1]["role"] != "user":
        raise Fault("malformed_record", "No message of a user is there to be answered.", sample.id)
    return sample, reference


def to_conversation(
    sample: Sample, open_image: Callable[[Any], Image.Image], system: str | None = None
) -> list[dict[str, Any]]:
    """
    The messages of a sample with its images opened.

    Args:
        sample (`Sample`): from one of the readers above.
        open_image: a source as a picture; raises what it likes.
        system (`str`, *optional*): the system message of conversations that have none.
    """
    images = iter([open_image(image) for image in sample.images])
    conversation: list[dict[str, Any]] = []
    if system is not None and sample.messages[0]["role"] != "system":
        conversation.append({"role": "system", "content": [{"type": "text", "text": system}]})
    for message in sample.messages:
        parts = [{**part, "image": next(images)} if part["type"] == "image" else part for part in message["content"]]
        conversation.append({"role": message["role"], "content": parts})
    return conversation
