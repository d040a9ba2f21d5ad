"""What the records of the tiny models have in common."""

import json
from collections.abc import Iterable
from pathlib import Path


SYSTEM = "look and answer."  # their system prompt; Vicuna's own has 32 words


def write_jsonl(path: Path, records: Iterable[dict]) -> Path:
    """One JSON object per line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path
