"""
TRL's SFTTrainer for AlignGPT: batches of [`~aligngpt.training.collator.AlignGPTDataCollator`], learning rates by
module, what the gate does in the logs, and runs that stop when they have to.
"""

import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import psutil
import torch
from peft import PeftModel
from transformers.utils import logging
from trl import SFTTrainer

from aligngpt.processing.corpus.faults import Fault
from aligngpt.training.checkpoints import check_output_folder
from aligngpt.training.history import TrainingHistory
from aligngpt.training.interruption import StopOnSignal
from aligngpt.training.model_card import write_model_card
from aligngpt.training.sampler import ModalityLengthSampler, TellEpoch
from aligngpt.training.stages import hold_trained_in_float32


logger = logging.get_logger(__name__)

ROW_LISTS = ("skipped_rows", "truncated_rows", "rows_without_target")


class AlignGPTTrainer(SFTTrainer):
    """
    [`~trl.SFTTrainer`] for both stages.

    Args:
        args (`StageConfig`): as SFTTrainer's, with what AlignGPT's stages add.
        history (`TrainingHistory`, *optional*): what the model card says about this stage and those before it.

    Raises:
        FloatingPointError: from `train`, if a loss or gradient is not finite; the message names the rows.
    """

    def __init__(self, *args, history: TrainingHistory | None = None, **kwargs):
        training_args, train_dataset = kwargs["args"], kwargs["train_dataset"]
        if isinstance(train_dataset, datasets.IterableDataset) and training_args.group_by_modality_length:
            raise ValueError("Streamed rows cannot be grouped: leave out group_by_modality_length, or streaming.")
        super().__init__(*args, **kwargs)
        check_output_folder(Path(training_args.output_dir), is_adapter=isinstance(self.model, PeftModel))
        self.history = history
        self.stop_on_signal = StopOnSignal()
        self.add_callback(self.stop_on_signal)
        self.loaded_dtype = self.model.dtype
        if not self.is_deepspeed_enabled:  # which keeps a copy in float32 of its own
            hold_trained_in_float32(self.model, autocast=training_args.bf16 or training_args.fp16)
        self._step_rows: list[str] = []
        self._row_counts = {"train": Counter(), "eval": Counter()}
        self._reset_interval()
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        self.model.register_forward_hook(self._keep_losses)
        base.model.register_forward_hook(self._keep_weights)

    # Data

    def _set_signature_columns_if_needed(self):
        # Columns that TRL does not know would vanish before the collator sees them
        super()._set_signature_columns_if_needed()
        extra = ["id", "alignment_level", "num_images", "length", "fault", "notes"]
        self._signature_columns = [*dict.fromkeys([*self._signature_columns, *extra])]

    def _get_train_sampler(self, train_dataset=None):
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        if not self.args.group_by_modality_length:
            return super()._get_train_sampler(train_dataset)
        sampler = ModalityLengthSampler(
            lengths=train_dataset["length"][:],
            has_images=[count > 0 for count in train_dataset["num_images"]],
            group_size=self.args.train_batch_size * self.args.world_size,
            seed=self.args.data_seed or self.args.seed,
        )
        self.add_callback(TellEpoch(sampler))
        return sampler

    # Optimisation

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        rates = {
            ".multi_modal_projector.": self.args.projector_learning_rate,
            ".alignment_gate.": self.args.gate_learning_rate,
        }
        for path, rate in rates.items():
            if is_new and rate is not None:
                named = (self.model if model is None else model).named_parameters()
                own = {id(parameter) for name, parameter in named if path in name}
                _split_groups(optimizer, own, rate)
        return optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        rows, mode = inputs.pop("row_ids", []), "train" if self.model.training else "eval"
        for name in ROW_LISTS:
            affected = inputs.pop(name, [])
            self._row_counts[mode][name] += len(affected)
            if affected:
                shown = [f"{row.id}: {row.kind}: {row}" if isinstance(row, Fault) else row for row in affected]
                logger.warning(f"Step {self.state.global_step + 1}, {mode}: {name.replace('_', ' ')}: {shown}")
        if num_items_in_batch is not None and not num_items_in_batch:
            raise ValueError(
                f"Step {self.state.global_step + 1} has no token to train on: all its rows were skipped. Among them: "
                f"{rows}. Is the image folder the right one? `--check` tells what is wrong with the data."
            )
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if return_outputs else result
        if mode == "eval":
            self._eval_sums += torch.stack([values.sum() for values in self._row_losses]).to(self._eval_sums)
        else:
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"The loss of step {self.state.global_step + 1} is {loss.item()}, on the batch of rows {rows}. "
                    "Look at them with `aligngpt inspect`; a lower learning rate, or bf16 instead of fp16, may help."
                )
            self._step_rows += rows
            self._count_levels(inputs.get("alignment_levels"))
        return result

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        # Averaged over tokens, as in training: a batch whose rows were all skipped must not count as a loss of 0
        self._eval_sums = torch.zeros(2, device=self.args.device)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        loss, num_tokens = self.accelerator.reduce(self._eval_sums, "sum").tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = loss / num_tokens if num_tokens else float("nan")
        return output

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        # In fp16 steps with infinite gradients are left out, and the scale of the loss is lowered
        if not self.args.fp16 and norm is not None and not torch.isfinite(torch.as_tensor(norm)).all():
            raise FloatingPointError(
                f"The gradients of step {self.state.global_step + 1} are not finite, on rows {self._step_rows}."
            )
        self._step_rows = []
        return norm

    # Logs

    def _reset_interval(self) -> None:
        num_levels = self.model.config.num_alignment_levels
        self._level_sums = torch.zeros(2, num_levels, device=self.args.device)  # loss, tokens
        self._gate_sums = torch.zeros(num_levels + 1, device=self.args.device)  # weights, entropy, rows
        self._interval_start, self._interval_tokens = time.perf_counter(), self._total_train_tokens

    def _keep_losses(self, module, args, outputs) -> None:
        if getattr(outputs, "log_probs", None) is not None:
            self._row_losses = -outputs.log_probs.detach().sum(-1), outputs.label_mask.sum(-1)

    def _keep_weights(self, module, args, outputs) -> None:
        if module.training and module.config.alignment_mode in ("adaptive", "local"):
            weights = outputs.alignment_weights.detach().float()  # (B, N-1), zeros where no gate ran
            entropy = torch.special.entr(weights).sum()
            num_rows = weights.any(-1).sum()
            self._gate_sums += torch.cat([weights.sum(0), torch.stack([entropy, num_rows])]).to(self._gate_sums)

    def _count_levels(self, levels: torch.LongTensor | None) -> None:
        if levels is not None:
            has_level = levels >= 0
            sums = torch.stack(self._row_losses).to(self._level_sums)[:, has_level]
            self._level_sums.index_add_(1, levels[has_level].to(self._level_sums.device), sums)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training and "loss" in logs:
            logs.update(self._summarise_interval())
            self._reset_interval()
        logs.update(self._summarise_rows())
        super().log(logs, start_time)

    def _summarise_rows(self) -> dict[str, int]:
        """How many rows of all processes were not trained on as they are, since the last log."""
        mode = "train" if self.model.training else "eval"
        counts = torch.tensor([float(self._row_counts[mode][name]) for name in ROW_LISTS], device=self.args.device)
        self._row_counts[mode].clear()
        prefix = "eval_" if mode == "eval" else ""
        counts = zip(ROW_LISTS, self.accelerator.reduce(counts, "sum").tolist(), strict=True)
        return {prefix + name: int(count) for name, count in counts if count}

    def _summarise_interval(self) -> dict[str, float]:
        sums = self.accelerator.reduce(torch.cat([self._level_sums.flatten(), self._gate_sums]), "sum").tolist()
        num_levels = self.model.config.num_alignment_levels
        losses, tokens = sums[:num_levels], sums[num_levels : 2 * num_levels]
        *weights, entropy, num_rows = sums[2 * num_levels :]
        seconds = time.perf_counter() - self._interval_start
        metrics = {f"loss_level_{i}": loss / n for i, (loss, n) in enumerate(zip(losses, tokens, strict=True)) if n}
        if num_rows:
            metrics |= {f"gate_weight_{index}": weight / num_rows for index, weight in enumerate(weights)}
            metrics["gate_entropy"] = entropy / num_rows
        metrics["tokens_per_second"] = (self._total_train_tokens - self._interval_tokens) / seconds
        is_cuda = self.args.device.type == "cuda"
        memory = torch.cuda.max_memory_allocated() if is_cuda else psutil.Process().memory_info().rss
        metrics["peak_gpu_memory_gib" if is_cuda else "memory_gib"] = memory / 2**30
        return metrics

    # Output

    def create_model_card(self, model_name=None, dataset_name=None, tags=None) -> None:
        if self.history is None:
            super().create_model_card(model_name, dataset_name, tags)
        elif self.is_world_process_zero():
            write_model_card(self.args.output_dir, self.history, self.hub_model_id)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)  # called on all processes; it writes on one
        if self.history is not None and self.args.should_save:
            self.history.save(output_dir or self.args.output_dir)


def finish(trainer: AlignGPTTrainer) -> None:
    """
    Saves model, processor, history and model card, and pushes them with `push_to_hub`; then evaluates if there are
    data for it and no strategy did. After a run that a signal stopped, exits with 128 plus the signal's number, as
    shells do, and leaves the checkpoint, with which `--resume_from_checkpoint latest` goes on.
    """
    number = trainer.stop_on_signal.signal_number
    if number is not None:
        if trainer.is_world_process_zero():
            logger.warning(
                f"Stopped by {signal.Signals(number).name} after step {trainer.state.global_step}; a checkpoint is in "
                f"{trainer.args.output_dir}: the same command with --resume_from_checkpoint latest goes on."
            )
        trainer.end()
        sys.exit(128 + number)
    whole = not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or isinstance(trainer.model, PeftModel))
    if whole:  # checkpoints go on in float32; the result is of the size that its configuration tells
        trainer.model.to(trainer.loaded_dtype)
    trainer.save_model(trainer.args.output_dir)  # and pushes, with the card
    trainer.create_model_card()  # peft wrote one of its own
    if trainer.eval_dataset is not None and trainer.args.eval_strategy == "no":  # once, of what was saved
        metrics = trainer.evaluate()  # which goes to trackers, and no longer to the terminal
        if trainer.is_world_process_zero():
            logger.info(f"Evaluation at the end: loss {metrics['eval_loss']:.4f}.")
    if trainer.is_world_process_zero():
        logger.info(f"Written to {trainer.args.output_dir}.")
    trainer.end()


def _split_groups(optimizer: torch.optim.Optimizer, parameter_ids: set[int], learning_rate: float) -> None:
    """Moves parameters to groups of their own, which differ from those where they were in the learning rate."""
    for group in list(optimizer.param_groups):
        own = [parameter for parameter in group["params"] if id(parameter) in parameter_ids]
        if own:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in parameter_ids]
            optimizer.add_param_group({**group, "params": own, "lr": learning_rate})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
