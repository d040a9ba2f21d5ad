"""
AlignGPT for transformers. Importing it registers config, models and processor with the Auto classes, and sees to it
that saved repositories carry the code that loads them without this package (`trust_remote_code=True`).
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_MAPPING_NAMES

from .configuration_aligngpt import AlignGPTConfig, __version__
from .modeling_aligngpt import AlignGPTForConditionalGeneration, AlignGPTModel, AlignGPTPreTrainedModel


# The processor's module is no sibling: the folders of the repository are packages of this one (pyproject.toml)
from aligngpt.processing.processing_aligngpt import AlignGPTProcessor  # isort: skip


AutoConfig.register("aligngpt", AlignGPTConfig)
AutoModel.register(AlignGPTConfig, AlignGPTModel)
AutoModelForImageTextToText.register(AlignGPTConfig, AlignGPTForConditionalGeneration)
AutoModelForCausalLM.register(AlignGPTConfig, AlignGPTForConditionalGeneration)  # for peft's AutoPeftModelForCausalLM
AutoProcessor.register(AlignGPTConfig, AlignGPTProcessor)
# Pipelines, trainers and test suites look models up by name in these tables, which `register` does not reach
MODEL_MAPPING_NAMES["aligngpt"] = "AlignGPTModel"
MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["aligngpt"] = "AlignGPTForConditionalGeneration"

AlignGPTConfig.register_for_auto_class("AutoConfig")
AlignGPTModel.register_for_auto_class("AutoModel")
AlignGPTForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
AlignGPTProcessor.register_for_auto_class("AutoProcessor")

__all__ = [
    "AlignGPTConfig",
    "AlignGPTForConditionalGeneration",
    "AlignGPTModel",
    "AlignGPTPreTrainedModel",
    "AlignGPTProcessor",
    "__version__",
]
