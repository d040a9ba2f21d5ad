"""What can be said about a run before any weights are loaded: the stage's rules, its output folder, the machine."""

import dataclasses
import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from transformers.utils import is_torch_bf16_gpu_available, is_torch_tf32_available, logging

from aligngpt.processing.argument_checks import find_problems
from aligngpt.processing.command_output import Mistakes
from aligngpt.training.arguments import AblationArguments
from aligngpt.training.history import HISTORY_FILE


logger = logging.get_logger(__name__)

StageName = Literal["pretrain", "sft"]


def check_stage(stage: StageName, *arguments: Any) -> None:
    """
    Whether the arguments of a stage agree with each other.

    Args:
        stage (`str`): `pretrain` or `sft`.
        arguments: the dataclasses of the stage's script.

    Raises:
        Mistakes: if not; a line each.
    """
    values = {name: value for group in arguments for name, value in vars(group).items()}
    if problems := find_stage_problems(stage, values):
        raise Mistakes(problems)


def find_run_problems(stage: StageName, values: dict[str, Any], launching: bool = False) -> list[str]:
    """
    Everything that is wrong with a run as far as its arguments, this machine's files and its GPU tell.

    Args:
        stage (`str`): `pretrain` or `sft`.
        values (`dict`): the arguments by name; `tf32` is taken out where the machine has none.
        launching (`bool`): whether other processes will train, which look at the GPUs themselves.
    """
    shown = {name: value for name, value in values.items() if name not in ("vision", "text")}
    if values["model_name_or_path"] is None:
        shown |= {name: values[name] for name in ("vision", "text") if name in values}
    problems = find_problems(shown) + find_stage_problems(stage, values)
    if values["output_dir"] is not None and not values["check"]:
        problems += _find_output_problems(stage, values)
    return problems if launching else problems + _find_precision_problems(values)


def find_stage_problems(stage: StageName, values: dict[str, Any]) -> list[str]:
    """Arguments that do not agree with each other, or with the stage."""
    problems = []
    quantised = [name for name in ("load_in_4bit", "load_in_8bit") if values[name]]
    if stage == "pretrain":
        if values["model_name_or_path"] is None and None in (values["vision"], values["text"]):
            problems.append("Name a composed model (--model), or its parts (--vision and --text).")
        if values["use_peft"] or quantised:
            problems.append(
                "Stage 1 trains the projector and the alignment embeddings, and no adapter; transformers' Trainer "
                "refuses a quantised model without one. A frozen language model in bf16 takes 2 bytes a parameter "
                "(7B: 13.5 GB), and its gradients none: leave out use_peft, load_in_4bit and load_in_8bit, and lower "
                "the batch size."
            )
        if values["interleaved"]:
            problems.append("--interleaved: stage 1 writes an image and its caption; the flag is stage 2's.")
    else:
        if values["model_name_or_path"] is None:
            problems.append("Name the checkpoint to start from: --model, e.g. the output folder of stage 1.")
        if quantised and not values["use_peft"]:
            problems.append(
                f"--{quantised[0]}: weights of {quantised[0][8:-3]} bits cannot be trained, but an adapter on them: "
                "add --use_peft true."
            )
        if values["use_peft"]:
            problems += _find_adapter_problems(values)
    if values["streaming"] and values["group_by_modality_length"]:
        problems.append("Streamed rows cannot be grouped: leave out group_by_modality_length, or streaming.")
    if values["streaming"] and not values["check"] and values["max_steps"] <= 0:
        problems.append("Streamed rows have no end: say how long to train by --max_steps.")
    if getattr(values["eval_strategy"], "value", values["eval_strategy"]) != "no" and values["eval_file"] is None:
        problems.append(f"--eval_strategy {values['eval_strategy']}: name what to evaluate on by --eval_file.")
    return problems


def _find_adapter_problems(values: dict[str, Any]) -> list[str]:
    """Whether an adapter will be loaded as it was trained: it holds weights, and is put on its base by its name."""
    problems = []
    if any(values[item.name] != item.default for item in dataclasses.fields(AblationArguments)):
        problems.append(
            "An adapter does not hold the ablation's configuration, and would be loaded on the base without it: set "
            "alignment_mode or alignment_gate_* in the base's config.json, or train without use_peft."
        )
    if values["push_to_hub"] and os.path.isdir(values["model_name_or_path"] or ""):
        problems.append(
            f"Nobody else can load an adapter of the folder {values['model_name_or_path']}: push the base first and "
            "name it by its Hub id, or push what `aligngpt merge` writes."
        )
    return problems


def _find_output_problems(stage: StageName, values: dict[str, Any]) -> list[str]:
    """Whether the output folder holds a run of another kind: it would be mixed with this one's files."""
    folder = Path(values["output_dir"])
    records = [folder / HISTORY_FILE, *folder.glob(f"checkpoint-*/{HISTORY_FILE}")]
    try:
        last = next(json.loads(path.read_text(encoding="utf-8"))[-1] for path in records if path.is_file())
    except StopIteration:
        found = [name for name in ("config.json", "adapter_config.json") if (folder / name).is_file()]
        what = "a model that no training of this package wrote" if found else None
    else:
        kinds = {True: "an adapter", False: "a whole model"}
        what = None
        if last["stage"] != stage:
            what = f"a run of `aligngpt {last['stage']}`"
        elif last["adapter"] != bool(values["use_peft"]):
            what = f"{kinds[last['adapter']]}, and this run writes {kinds[not last['adapter']]}"
    if what is None:
        return []
    return [f"--output_dir {folder}: it holds {what}: name another output_dir, or remove it first."]


def find_launch_problems(launch_file: str, launch: Namespace) -> list[str]:
    """
    Whether this machine has the GPUs that a launch wants.

    Args:
        launch_file (`str`): accelerate's configuration.
        launch (`Namespace`): what the command line says beside it.
    """
    with open(launch_file, encoding="utf-8") as file:
        settings = yaml.safe_load(file) | {name: value for name, value in vars(launch).items() if value}
    if settings.get("distributed_type", "NO") == "NO" or settings.get("use_cpu") or settings.get("cpu"):
        return []
    needed = int(settings.get("num_processes", 1)) // int(settings.get("num_machines", 1))
    if (there := torch.cuda.device_count()) >= needed:
        return []
    return [
        f"--accelerate_config {Path(launch_file).stem} is for {needed} GPUs in a machine, and this one has {there}: "
        "name another, or say how many by --num_processes."
    ]


def _find_precision_problems(values: dict[str, Any]) -> list[str]:
    """Whether this machine computes in the precision that is asked for."""
    if values["tf32"] and not is_torch_tf32_available():
        logger.warning("tf32 is left out: this machine has no NVIDIA GPU of the Ampere generation or a later one.")
        values["tf32"] = None
    fp16, dtype = bool(values["fp16"]), values["dtype"]
    bf16 = values["bf16"] if values["bf16"] is not None else not fp16  # TRL's default
    on_cpu = values["use_cpu"] or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes")
    if bf16 and not on_cpu and not is_torch_bf16_gpu_available():
        return [
            "--bf16 true: this machine has no GPU that computes in bf16: add --bf16 false --dtype float32, or, for a "
            "GPU older than Ampere, --bf16 false --fp16 true --dtype float16; on a CPU --use_cpu true is another way."
        ]
    if fp16 and (on_cpu or not torch.accelerator.is_available()):
        return ["--fp16 true: a CPU does not train in fp16: add --fp16 false --bf16 false --dtype float32."]
    if not bf16 and not fp16 and dtype in ("bfloat16", "float16") and not values["deepspeed"]:
        return [
            f"--dtype {dtype}: nothing brings the frozen weights, in half precision, and what trains, in float32, "
            f"together without bf16 or fp16: add --dtype float32, or set {'bf16' if dtype == 'bfloat16' else 'fp16'} "
            "to true."
        ]
    return []
