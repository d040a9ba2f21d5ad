"""The model card of a training run, and the record of all stages from which it is written."""

import json
import os
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData, parse_eval_result_entries
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import cached_file
from trl import ModelConfig

from aligngpt import AlignGPTConfig
from aligngpt.processing.atomic_output import write_json
from aligngpt.training.arguments import AblationArguments, DataArguments, StageConfig


RECORD_FILE = "training_stages.json"
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
class StageRecord:
    """
    What was trained, from what, on what and how: one dictionary a stage, the oldest first. Kept beside the weights as
    `training_stages.json`, where the next stage finds it.
    """

    stages: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def load(cls, name_or_path: str | None, revision: str | None = None) -> "StageRecord":
        """The record of a checkpoint, a folder or a Hub id; empty if it has none."""
        if name_or_path is None:
            return cls()
        path = cached_file(
            name_or_path,
            RECORD_FILE,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        return cls(json.loads(Path(path).read_text(encoding="utf-8"))) if path is not None else cls()

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the record beside a checkpoint's weights."""
        write_json(Path(folder, RECORD_FILE), self.stages)

    def add(
        self,
        stage: str,
        base_models: list[str],
        trained: list[str],
        data_args: DataArguments,
        training_args: StageConfig,
        model_args: ModelConfig,
        config: AlignGPTConfig,
        ablation_args: AblationArguments | None = None,
    ) -> "StageRecord":
        """This record with one more stage."""
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
            "base_models": [_without_folders(name) for name in base_models],
            "adapter": model_args.use_peft,
            "data": _without_folders(data_args.data),
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
                entry["levels"]["scorer"] = _without_folders(entry["levels"]["scorer"])
        return StageRecord([*self.stages, entry])


def write_model_card(
    folder: str | os.PathLike,
    record: StageRecord,
    hub_model_id: str | None = None,
    out: str | os.PathLike | None = None,
) -> ModelCard:
    """
    Writes `README.md` into a folder: from the record, and the results in `.eval_results/*.yaml` (the Hub's format) if
    there are any.

    Args:
        folder (`str`): of the model or adapter.
        record (`StageRecord`): with at least one stage.
        hub_model_id (`str`, *optional*): the repository that the snippet loads; by default the folder's name.
        out (`str`, *optional*): file to write to instead.
    """
    last = record.stages[-1]
    is_adapter = last["adapter"] and not Path(folder, "config.json").is_file()  # which a merged one has
    all_bases = list(dict.fromkeys(name for stage in record.stages for name in stage["base_models"]))
    # The metadata is checked by the Hub, which knows repositories, not folders
    repositories = [name for name in (last["base_models"] if is_adapter else all_bases) if _is_repository(name)]
    data = ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="image-text-to-text",
        base_model=repositories or None,
        datasets=[stage["data"] for stage in record.stages if _is_repository(stage["data"])] or None,
        tags=["aligngpt", "trl", "lora" if is_adapter else "custom_code"],
    )
    template = files(__package__).joinpath("model_card_template.md")
    with as_file(template) as template_path:
        card = ModelCard.from_template(
            data,
            template_path=str(template_path),
            name=(hub_model_id or Path(folder).resolve().name).rpartition("/")[2],
            path=hub_model_id or Path(folder).resolve().name,
            base=last["base_models"][-1],
            base_is_local=not repositories,
            adapter=is_adapter,
            stages=record.stages,
            bases=record.stages[0]["base_models"],
            results=_read_results(Path(folder)),
        )
    card.save(out or Path(folder, "README.md"))
    return card


def _read_results(folder: Path) -> list[tuple[str, str, Any]]:
    """Data set, task and value of each published result."""
    entries = []
    for path in sorted((folder / ".eval_results").glob("*.yaml")):
        entries += parse_eval_result_entries(yaml.safe_load(path.read_text(encoding="utf-8")))
    return [(entry.dataset_id, entry.task_id, entry.value) for entry in entries]


def _is_repository(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def _without_folders(name: str) -> str:
    """A Hub id as it is; of a path only the last part: what lies above is nobody's business."""
    is_path = os.path.exists(name) or name.startswith((".", "/", "~")) or not _is_repository(name)
    return Path(name).name if is_path else name
