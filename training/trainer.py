"""TRL's SFTTrainer, told to keep the columns that AlignGPT needs, and the checkpoint that it starts from."""

from transformers import AutoProcessor
from trl import ModelConfig, SFTTrainer

from aligngpt import AlignGPTForConditionalGeneration, AlignGPTProcessor


def load_checkpoint(model_args: ModelConfig) -> tuple[AlignGPTForConditionalGeneration, AlignGPTProcessor]:
    """
    Model and processor of `model_name_or_path`, in the precision and with the attention that the arguments name.

    Raises:
        ValueError: if no checkpoint is named.
    """
    name, revision = model_args.model_name_or_path, model_args.model_revision
    if name is None:
        raise ValueError("Name the checkpoint to start from: --model_name_or_path, e.g. the output folder of stage 1.")
    model = AlignGPTForConditionalGeneration.from_pretrained(
        name, revision=revision, dtype=model_args.dtype, attn_implementation=model_args.attn_implementation
    )
    return model, AutoProcessor.from_pretrained(name, revision=revision)


class AlignGPTTrainer(SFTTrainer):
    """[`~trl.SFTTrainer`] for [`~aligngpt.training.data.AlignGPTDataCollator`]."""

    def _set_signature_columns_if_needed(self):
        # Columns that TRL does not know would vanish before the collator sees them
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*dict.fromkeys([*self._signature_columns, "id", "alignment_level"])]
