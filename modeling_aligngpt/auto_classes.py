"""Makes AlignGPT known to the Auto classes. `import aligngpt` imports it, the command as soon as a class is used."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_MAPPING_NAMES

from aligngpt.processing.processing_aligngpt import AlignGPTProcessor

from .configuration_aligngpt import AlignGPTConfig
from .modeling_aligngpt import AlignGPTForConditionalGeneration, AlignGPTModel


AutoConfig.register("aligngpt", AlignGPTConfig)
AutoModel.register(AlignGPTConfig, AlignGPTModel)
AutoModelForImageTextToText.register(AlignGPTConfig, AlignGPTForConditionalGeneration)
AutoModelForMultimodalLM.register(AlignGPTConfig, AlignGPTForConditionalGeneration)  # for transformers' server
AutoModelForCausalLM.register(AlignGPTConfig, AlignGPTForConditionalGeneration)  # for peft's AutoPeftModelForCausalLM
AutoProcessor.register(AlignGPTConfig, AlignGPTProcessor)
# Pipelines, trainers and test suites look models up by name in these tables, which `register` does not reach
MODEL_MAPPING_NAMES["aligngpt"] = "AlignGPTModel"
MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["aligngpt"] = "AlignGPTForConditionalGeneration"

AlignGPTConfig.register_for_auto_class("AutoConfig")
AlignGPTModel.register_for_auto_class("AutoModel")
AlignGPTForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
AlignGPTProcessor.register_for_auto_class("AutoProcessor")
