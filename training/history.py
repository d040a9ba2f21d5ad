"""The history of a model: what each training stage was told and trained, kept beside the weights."""

import json
import os
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import cached_file
from trl import ModelConfig

from aligngpt import AlignGPTConfig
from aligngpt.processing.atomic_output import write_json
from aligngpt.training.arguments import AblationArguments, DataArguments, StageConfig


HISTORY_FILE = "training_stages.json"
# Written down where they are set
HYPERPARAMETERS = (
    "learning_rate",
    "projector_learning_rate",
    "gate_learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "max_length",
    "bf16",
    "fp16",
    "group_by_modality_length",
    "seed",
)
LORA = ("lora_r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora")
PACKAGES = ("aligngpt", "transformers", "trl", "peft", "torch")


@dataclass
class TrainingHistory:
    """
    What was trained, from what, on what and how: one dictionary a stage, the oldest first. Kept beside the weights as
    `training_stages.json`, where the next stage finds it.
    """

    stages: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def load(cls, name_or_path: str | None, revision: str | None = None) -> "TrainingHistory":
        """The history of a checkpoint, a folder or a Hub id; empty if it has none."""
        if name_or_path is None:
            return cls()
        path = cached_file(
            name_or_path,
            HISTORY_FILE,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        return cls(json.loads(Path(path).read_text(encoding="utf-8"))) if path is not None else cls()

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the history beside a checkpoint's weights."""
        write_json(Path(folder, HISTORY_FILE), self.stages)

    def add(
        self,
        stage: str,
        base_models: list[str],
        trained: list[str],
        data_args: DataArguments,
        training_args: StageConfig,
        model_args: ModelConfig,
        config: AlignGPTConfig,
        rows: dict[str, int] | None = None,
        ablation_args: AblationArguments | None = None,
    ) -> "TrainingHistory":
        """This history with one more stage, on `rows`, as [`~aligngpt.training.data.count_rows`] counts them."""
        values = asdict(training_args)
        hyperparameters = {name: values[name] for name in HYPERPARAMETERS if values[name] not in (None, -1)}
        hyperparameters["global_batch_size"] = (
            training_args.per_device_train_batch_size
            * training_args.gradient_accumulation_steps
            * training_args.world_size
        )
        hyperparameters["optimizer"] = str(training_args.optim.value)
        hyperparameters["lr_scheduler_type"] = str(training_args.lr_scheduler_type.value)
        if model_args.use_peft:
            hyperparameters |= {name: getattr(model_args, name) for name in LORA if getattr(model_args, name)}
        if model_args.load_in_4bit:
            hyperparameters["quantization"] = model_args.bnb_4bit_quant_type
        gate = ("text", "query", "input", "temperature")
        names = ("num_alignment_levels", "alignment_mode", *(f"alignment_gate_{name}" for name in gate))
        entry = {
            "stage": stage,
            "base_models": [without_folders(name) for name in base_models],
            "adapter": model_args.use_peft,
            "data": without_folders(data_args.data),
            "rows": rows,
            "trained": trained,
            "config": {name: getattr(config, name) for name in names},
            "hyperparameters": hyperparameters,
            "versions": {package: version(package) for package in PACKAGES},
        }
        if ablation_args is not None and ablation_args.random_alignment_embeddings:
            entry["config"]["random_alignment_embeddings"] = True
        cuts = Path(data_args.data, "alignment_levels.json")
        if stage == "pretrain" and cuts.is_file():
            entry["levels"] = json.loads(cuts.read_text(encoding="utf-8"))
            if entry["levels"]["scorer"]:
                entry["levels"]["scorer"] = without_folders(entry["levels"]["scorer"])
        return TrainingHistory([*self.stages, entry])


def is_repository(name: str) -> bool:
    """Whether a name is that of a repository on the Hub."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def without_folders(name: str) -> str:
    """A Hub id as it is; of a path only the last part: what lies above is nobody's business."""
    is_path = os.path.exists(name) or name.startswith((".", "/", "~")) or not is_repository(name)
    return Path(name).name if is_path else name
