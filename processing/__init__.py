"""Images and text to model inputs, chat templates, alignment scores and levels; loaded when they are used."""

import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .chat_templates import load_chat_template
    from .levels.cuts import LevelCuts, cut_into_levels
    from .processing_aligngpt import AlignGPTProcessor
    from .scoring.scorer import AlignmentScorer


__all__ = ["AlignGPTProcessor", "AlignmentScorer", "LevelCuts", "cut_into_levels", "load_chat_template"]

_MODULES = {
    "AlignGPTProcessor": "processing_aligngpt",
    "AlignmentScorer": "scoring.scorer",
    "LevelCuts": "levels.cuts",
    "cut_into_levels": "levels.cuts",
    "load_chat_template": "chat_templates",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
