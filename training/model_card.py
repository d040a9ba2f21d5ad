"""The model card of a training run, written from the history of all its stages."""

import os
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData, parse_eval_result_entries

from aligngpt.training.history import TrainingHistory, is_repository


def write_model_card(
    folder: str | os.PathLike,
    history: TrainingHistory,
    hub_model_id: str | None = None,
    out: str | os.PathLike | None = None,
) -> ModelCard:
    """
    Writes `README.md` into a folder: from the history, and the results in `.eval_results/*.yaml` (the Hub's format) if
    there are any.

    Args:
        folder (`str`): of the model or adapter.
        history (`TrainingHistory`): with at least one stage.
        hub_model_id (`str`, *optional*): the repository that the snippet loads; by default the folder's name.
        out (`str`, *optional*): file to write to instead.
    """
    last = history.stages[-1]
    is_adapter = last["adapter"] and not Path(folder, "config.json").is_file()  # which a merged one has
    all_bases = list(dict.fromkeys(name for stage in history.stages for name in stage["base_models"]))
    # The metadata is checked by the Hub, which knows repositories, not folders
    repositories = [name for name in (last["base_models"] if is_adapter else all_bases) if is_repository(name)]
    data = ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="image-text-to-text",
        base_model=repositories or None,
        datasets=[stage["data"] for stage in history.stages if is_repository(stage["data"])] or None,
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
            stages=history.stages,
            bases=history.stages[0]["base_models"],
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
