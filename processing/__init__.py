"""Images and text to model inputs, chat templates, alignment scores and levels."""

from .alignment_levels import LevelCuts, cut_into_levels
from .alignment_scores import AlignmentScorer
from .chat_templates import load_chat_template
from .processing_aligngpt import AlignGPTProcessor


__all__ = ["AlignGPTProcessor", "AlignmentScorer", "LevelCuts", "cut_into_levels", "load_chat_template"]
