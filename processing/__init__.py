"""Images and text to model inputs, chat templates, alignment scores and levels."""

from .chat_templates import load_chat_template
from .levels.cuts import LevelCuts, cut_into_levels
from .processing_aligngpt import AlignGPTProcessor
from .scoring.scorer import AlignmentScorer


__all__ = ["AlignGPTProcessor", "AlignmentScorer", "LevelCuts", "cut_into_levels", "load_chat_template"]
