"""
Stage 2, adaptive alignment-based instruction tuning: projector, language model and gate learn from conversations. The
vision tower and the alignment embeddings are frozen.

From a stage-1 output, on 8 GPUs:

    accelerate launch --num_processes 8 -m aligngpt.training.sft --config sft_7b \
        --model_name_or_path aligngpt-7b-pretrain --train_file llava_v1_5_mix665k.json --image_folder images \
        --output_dir aligngpt-7b

On two CPU cores:

    python -m aligngpt.training.sft --config sft_tiny_cpu --model_name_or_path stage1 --train_file chats.jsonl \
        --image_folder images --output_dir stage2
"""

import sys

from trl import ModelConfig, SFTConfig, TrlParser

from aligngpt.training.arguments import DataArguments, find_recipe
from aligngpt.training.data import AlignGPTDataCollator, load_training_data
from aligngpt.training.stages import select_trainable
from aligngpt.training.trainer import AlignGPTTrainer, load_checkpoint


def main(data_args: DataArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    """Trains and saves a stage-2 model."""
    model, processor = load_checkpoint(model_args)
    select_trainable(model, "sft")
    processor.image_processor.do_pad = True

    trainer = AlignGPTTrainer(
        model=model,
        args=training_args,
        train_dataset=load_training_data(data_args.train_file, data_args.image_folder),
        data_collator=AlignGPTDataCollator(
            processor=processor,
            max_length=training_args.max_length,
            pad_to_multiple_of=training_args.pad_to_multiple_of,
        ),
        processing_class=processor,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)


if __name__ == "__main__":
    parser = TrlParser((DataArguments, SFTConfig, ModelConfig))
    main(*parser.parse_args_and_config(args=find_recipe(sys.argv[1:])))
