"""One stage of one run: trains through the package's own scripts, measures, returns what the results file holds."""

import time
from pathlib import Path
from typing import Any

import torch
from evaluate import answer_questions, control_levels, measure_gate
from experiments import LEVELS, Method, Size, Stage1
from transformers import set_seed

from aligngpt.training import pretrain, sft
from aligngpt.training.command_line import StageParser
from aligngpt.weights.composing import compose


def train(script, **arguments: Any) -> float:
    """`aligngpt STAGE --name value ...` in this process; returns the last loss that it logged."""
    command = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    stage = script.__name__.rpartition(".")[2]
    trainer = script.main(*StageParser(stage).parse([*command, "--disable_tqdm", "true"]))
    logs = trainer.state.log_history
    return next((log["loss"] for log in reversed(logs) if "loss" in log), logs[-1]["train_loss"])


def run_stage1(stage: Stage1, seed: int, output: Path, size: Size) -> dict:
    """Composes CLIP and LLaMA, trains stage 1, and asks for captions at every level."""
    start, folder, data = time.time(), output / "stage1" / f"{stage.name}-{seed}", output / "data"
    set_seed(seed)
    model, processor = compose(output / "clip", output / "llama", num_alignment_levels=stage.num_levels)
    processor.add_align_token = stage.has_align_token
    model.save_pretrained(folder / "start")
    processor.save_pretrained(folder / "start")
    scored = stage.levels == "scored"
    loss = train(
        pretrain,
        config="pretrain_tiny_cpu",
        **size.stage1,
        model_name_or_path=folder / "start",
        data=output / (f"levels{stage.num_levels}" if scored else f"levels_{stage.levels}.jsonl"),
        image_folder=data,
        output_dir=folder,
        seed=seed,
    )
    result = {"stage1": stage.name, "seed": seed, "train_loss": loss}
    result["levels"] = control_levels(folder, output / "clip", data, "test", num_images=size.num_captioned)
    return result | {"seconds": round(time.time() - start)}


def run_stage2(method: Method, seed: int, output: Path, size: Size) -> dict:
    """Trains stage 2 from the method's stage 1, asks questions, and measures the gate where there is one."""
    start, folder, data = time.time(), output / "stage2" / f"{method.name}-{seed}", output / "data"
    stage1 = output / "stage1" / f"{method.stage1}-{seed}"
    loss = train(
        sft,
        config="sft_tiny_cpu",
        **size.stage2,
        **method.arguments,
        model_name_or_path=stage1,
        data=data / "conversations.jsonl",
        image_folder=data,
        output_dir=folder,
        seed=seed,
    )
    result = {"method": method.name, "seed": seed, "split": method.split, "train_loss": loss}
    result["tasks"] = answer_questions(folder, data, method.split)
    if method.split == "test":
        result["train_tasks"] = answer_questions(folder, data, "train", num_images=100)
    if method.arguments.get("alignment_mode", "adaptive") in ("adaptive", "local") and method.stage1 != "llava":
        set_seed(seed)  # what the gate has beyond stage 1's is drawn as it was for the training
        fields = {n: v for n, v in method.arguments.items() if n.startswith("alignment_gate_")}
        result["gate_before"] = measure_gate(stage1, data, size.num_gate_rows, **fields)
        result["gate_after"] = measure_gate(folder, data, size.num_gate_rows)
    if method.name == "llava":  # which tasks are open is not decided on the test split
        result["validation_tasks"] = answer_questions(folder, data, "validation")
    if method.name == "aligngpt":
        levels = {"gate": None} | {str(level): level for level in range(LEVELS)}
        answers = {
            name: answer_questions(folder, data, "test", num_images=size.num_fixed_level, level=level)
            for name, level in levels.items()
        }
        result["fixed_levels"] = {
            name: {task: row["score"] for task, row in tasks.items()} for name, tasks in answers.items()
        }
    return result | {"seconds": round(time.time() - start)}


def run_job(job: tuple) -> dict:
    """A stage of a run, in a process of its own with one thread."""
    torch.set_num_threads(1)
    spec, seed, output, size = job
    return (run_stage1 if isinstance(spec, Stage1) else run_stage2)(spec, seed, output, size)
