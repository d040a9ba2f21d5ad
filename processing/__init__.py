"""Images and text to model inputs, chat templates, alignment scores and levels."""

from .chat_templates import load_chat_template
from .processing_aligngpt import AlignGPTProcessor


__all__ = ["AlignGPTProcessor", "load_chat_template"]
