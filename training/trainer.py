"""TRL's SFTTrainer, told to keep the columns that AlignGPT needs."""

from trl import SFTTrainer


class AlignGPTTrainer(SFTTrainer):
    """[`~trl.SFTTrainer`] for [`~aligngpt.training.data.AlignGPTDataCollator`]."""

    def _set_signature_columns_if_needed(self):
        # Columns that TRL does not know would vanish before the collator sees them
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*dict.fromkeys([*self._signature_columns, "id", "alignment_level"])]
