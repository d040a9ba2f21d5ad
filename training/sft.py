r"""
Stage 2, adaptive alignment-based instruction tuning: projector, language model and gate learn from conversations. The
vision tower and the alignment embeddings are frozen.

From a stage-1 output, on 8 GPUs:

    aligngpt sft --config sft_7b --accelerate_config zero3_8gpu --model aligngpt-7b-pretrain \
        --data llava_v1_5_mix665k.json --image_folder images --output_dir aligngpt-7b

With LoRA on a language model in 4 bits, on one GPU of 24 GB:

    aligngpt sft --config sft_7b_qlora_24gb --model aligngpt-7b-pretrain --data llava_v1_5_mix665k.json \
        --image_folder images --output_dir aligngpt-7b-qlora
    aligngpt merge aligngpt-7b-qlora --output_dir aligngpt-7b

On two CPU cores:

    aligngpt sft --config sft_tiny_cpu --model stage1 --data chats.jsonl --image_folder images --output_dir stage2

`python -m aligngpt.training.sft` takes the same arguments, also through `accelerate launch` and `torchrun`.

With `--check` the data are gone through and reported on; nothing is trained. With `--resume_from_checkpoint latest`
the same command starts a run and goes on with one that was stopped.
"""

import sys

from transformers import set_seed
from trl import ModelConfig

from aligngpt.processing.chat_templates import interleave, is_interleaved
from aligngpt.training.arguments import AblationArguments, DataArguments, StageConfig
from aligngpt.training.check import check_data
from aligngpt.training.checkpoints import find_checkpoint, load_model, load_processor
from aligngpt.training.command_line import run_script
from aligngpt.training.data import load_datasets
from aligngpt.training.history import TrainingHistory
from aligngpt.training.row_counts import check_first_image, count_rows
from aligngpt.training.stage_checks import check_stage
from aligngpt.training.stages import (
    get_lora_config,
    get_trained_modules,
    make_collator,
    redraw_alignment_embeddings,
    select_trainable,
)
from aligngpt.training.trainer import AlignGPTTrainer, finish


def main(
    data_args: DataArguments, ablation_args: AblationArguments, training_args: StageConfig, model_args: ModelConfig
) -> AlignGPTTrainer:
    """
    Trains and saves a stage-2 model, or with `use_peft` an adapter; returns the trainer.

    Raises:
        Mistakes: if an adapter is asked for that would be another one when loaded, or a quantised model without one.
    """
    check_stage("sft", data_args, ablation_args, training_args, model_args)
    processor = load_processor(model_args)
    if data_args.interleaved:
        processor.chat_template = interleave(processor.chat_template)
    data_args.interleaved = is_interleaved(processor.chat_template)
    collator = make_collator(
        "sft",
        processor,
        max_length=training_args.max_length,
        pad_to_multiple_of=training_args.pad_to_multiple_of,
        image_folder=data_args.image_folder,
        on_bad_row=data_args.on_error,
    )
    if data_args.check:
        sys.exit(check_data(data_args, training_args, collator))  # for which no weights are needed

    loaded = load_datasets(data_args, training_args)  # before any weights: what the data lack is told at once
    check_first_image(loaded["train_dataset"], data_args)
    set_seed(training_args.seed)
    model = load_model(model_args, **ablation_args.get_config_fields())
    if ablation_args.random_alignment_embeddings:
        redraw_alignment_embeddings(model)
    extra = ["model.vision_tower"] if training_args.train_vision_tower else []
    extra += ["model.alignment_embeddings"] if training_args.train_alignment_embeddings else []
    trained = get_trained_modules(model, "sft", *extra)
    peft_config = get_lora_config(model, model_args, *extra)
    if peft_config is None:
        select_trainable(model, "sft", *extra)
    else:
        trained.remove("lm_head")
    history = TrainingHistory.load(model_args.model_name_or_path, model_args.model_revision)
    trainer = AlignGPTTrainer(
        model=model,
        args=training_args,
        data_collator=collator,
        processing_class=processor,
        peft_config=peft_config,
        history=history.add(
            stage="sft",
            base_models=[model_args.model_name_or_path],
            trained=trained,
            data_args=data_args,
            training_args=training_args,
            model_args=model_args,
            config=model.config,
            rows=count_rows(loaded["train_dataset"]),
            ablation_args=ablation_args,
        ),
        **loaded,
    )
    trainer.train(resume_from_checkpoint=find_checkpoint(training_args))
    finish(trainer)
    return trainer


if __name__ == "__main__":
    run_script("sft")
