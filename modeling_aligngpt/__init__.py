"""
AlignGPT for transformers. Importing it registers config, models and processor with the Auto classes, and sees to it
that saved repositories carry the code that loads them without this package (`trust_remote_code=True`).

The names below are loaded when they are used: what trains needs TRL, and what only tells how a command is used needs
none of the libraries.
"""

import importlib
import itertools
import os
import sys
import sysconfig
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from aligngpt.configuration_aligngpt import AlignGPTConfig, __version__
    from aligngpt.modeling_aligngpt import (
        AlignGPTForConditionalGeneration,
        AlignGPTModel,
        AlignGPTPreTrainedModel,
    )
    from aligngpt.processing import AlignGPTProcessor, AlignmentScorer, cut_into_levels
    from aligngpt.training.collator import AlignGPTDataCollator
    from aligngpt.training.data import load_training_data
    from aligngpt.training.merge import load_adapter
    from aligngpt.training.trainer import AlignGPTTrainer
    from aligngpt.weights.composing import compose
    from aligngpt.weights.converting import convert
    from aligngpt.weights.exporting import export_llava


__all__ = [
    "AlignGPTConfig",
    "AlignGPTDataCollator",
    "AlignGPTForConditionalGeneration",
    "AlignGPTModel",
    "AlignGPTPreTrainedModel",
    "AlignGPTProcessor",
    "AlignGPTTrainer",
    "AlignmentScorer",
    "__version__",
    "compose",
    "convert",
    "cut_into_levels",
    "export_llava",
    "load_adapter",
    "load_training_data",
]

_MODULES = {
    "AlignGPTConfig": "configuration_aligngpt",
    "AlignGPTDataCollator": "training.collator",
    "AlignGPTForConditionalGeneration": "modeling_aligngpt",
    "AlignGPTModel": "modeling_aligngpt",
    "AlignGPTPreTrainedModel": "modeling_aligngpt",
    "AlignGPTProcessor": "processing.processing_aligngpt",
    "AlignGPTTrainer": "training.trainer",
    "AlignmentScorer": "processing.scoring.scorer",
    "__version__": "configuration_aligngpt",
    "compose": "weights.composing",
    "convert": "weights.converting",
    "cut_into_levels": "processing.levels.cuts",
    "export_llava": "weights.exporting",
    "load_adapter": "training.merge",
    "load_training_data": "training.data",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module("aligngpt.auto_classes")
    value = getattr(importlib.import_module(f"aligngpt.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _is_command() -> bool:
    """
    Whether this process is the command `aligngpt`, which registers when it has to: `aligngpt --help` should not wait
    for torch. Its child processes are not: they may load what they are sent.
    """
    children = sys.modules.get("multiprocessing.process")
    if children is not None and children.parent_process() is not None:
        return False
    name = sys.argv[0] if sys.argv else ""
    if name == "-m":  # as long as the package of the module is being imported
        options = list(itertools.takewhile(lambda option: option.startswith("-"), sys.orig_argv[1:]))
        module = sys.orig_argv[len(options) + 1 : len(options) + 2]
        return bool(options) and options[-1].endswith("m") and module == ["aligngpt"]
    # The script that pip installed, not another of that name
    return os.path.splitext(os.path.realpath(name))[0] == os.path.realpath(
        os.path.join(sysconfig.get_path("scripts"), "aligngpt")
    )


if not _is_command():
    importlib.import_module("aligngpt.auto_classes")
