r"""
Stage 1, alignment level-aware pre-training: the projector and the alignment embeddings learn from captioned images
whose alignment levels are known. Everything else is frozen.

Compose Vicuna and CLIP and train, on 8 GPUs:

    aligngpt pretrain --config pretrain_7b --accelerate_config zero2_8gpu --data levels --image_folder images \
        --output_dir aligngpt-7b-pretrain

On two CPU cores, with tiny parts:

    aligngpt pretrain --config pretrain_tiny_cpu --vision clip --text llama --data pairs.jsonl --image_folder images \
        --output_dir stage1

`python -m aligngpt.training.pretrain` takes the same arguments, also through `accelerate launch` and `torchrun`.

With `--check` the data are gone through and reported on; nothing is trained. With `--resume_from_checkpoint latest`
the same command starts a run and goes on with one that was stopped.

The output folder is an ordinary checkpoint: `AutoModelForImageTextToText.from_pretrained` loads it, and `aligngpt sft`
takes it as `--model`.
"""

import sys

from transformers import set_seed
from trl import ModelConfig

from aligngpt.training.arguments import ComposeArguments, DataArguments, StageConfig
from aligngpt.training.check import check_data
from aligngpt.training.checkpoints import find_checkpoint, load_model, load_processor
from aligngpt.training.command_line import run_script
from aligngpt.training.data import check_num_levels, load_datasets
from aligngpt.training.history import TrainingHistory
from aligngpt.training.row_counts import check_first_image, count_rows
from aligngpt.training.stage_checks import check_stage
from aligngpt.training.stages import STAGES, get_trained_modules, make_collator, select_trainable
from aligngpt.training.trainer import AlignGPTTrainer, finish
from aligngpt.weights.composing import compose


def main(
    data_args: DataArguments, compose_args: ComposeArguments, training_args: StageConfig, model_args: ModelConfig
) -> AlignGPTTrainer:
    """
    Trains and saves a stage-1 model; returns the trainer.

    Raises:
        Mistakes: if neither a composed checkpoint nor its two parts are named, or the language model should be
            quantised or adapted, which stage 1 cannot train beside.
        ValueError: if model, arguments and data have different numbers of levels.
    """
    check_stage("pretrain", data_args, compose_args, training_args, model_args)
    # A composed model wins over the parts of a recipe
    name = model_args.model_name_or_path
    parts = (compose_args.vision, compose_args.text) if name is None else (name,)
    if not data_args.check:  # before any weights: what the data lack is told at once
        loaded = load_datasets(data_args, training_args, STAGES["pretrain"].needs_levels)
        check_first_image(loaded["train_dataset"], data_args)
    set_seed(training_args.seed)  # the new modules are drawn before the trainer would set the seed
    if model_args.model_name_or_path is not None:
        processor, model = load_processor(model_args), load_model(model_args)
    else:
        num_levels = compose_args.num_alignment_levels
        model, processor = compose(
            *parts,
            chat_template=compose_args.chat_template,
            dtype=model_args.dtype,
            attn_implementation=model_args.attn_implementation,
            **({} if num_levels is None else {"num_alignment_levels": num_levels}),
        )
    check_num_levels(model.config, compose_args, data_args)
    collator = make_collator(
        "pretrain",
        processor,
        model.config.num_alignment_levels,
        max_length=training_args.max_length,
        pad_to_multiple_of=training_args.pad_to_multiple_of,
        image_folder=data_args.image_folder,
        on_bad_row=data_args.on_error,
    )
    if data_args.check:
        sys.exit(check_data(data_args, training_args, collator))

    extra = ["model.vision_tower"] if training_args.train_vision_tower else []
    select_trainable(model, "pretrain", *extra)
    history = TrainingHistory.load(model_args.model_name_or_path, model_args.model_revision)
    trainer = AlignGPTTrainer(
        model=model,
        args=training_args,
        data_collator=collator,
        processing_class=processor,
        history=history.add(
            stage="pretrain",
            base_models=list(parts),
            trained=get_trained_modules(model, "pretrain", *extra),
            data_args=data_args,
            training_args=training_args,
            model_args=model_args,
            config=model.config,
            rows=count_rows(loaded["train_dataset"]),
        ),
        **loaded,
    )
    trainer.train(resume_from_checkpoint=find_checkpoint(training_args))
    finish(trainer)
    return trainer


if __name__ == "__main__":
    run_script("pretrain")
