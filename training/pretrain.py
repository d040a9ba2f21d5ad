"""
Stage 1, alignment level-aware pre-training: the projector and the alignment embeddings learn from captioned images
whose alignment levels are known. Everything else is frozen.

Compose Vicuna and CLIP and train, on 8 GPUs:

    accelerate launch --num_processes 8 -m aligngpt.training.pretrain --config pretrain_7b \
        --train_file levels --image_folder images --output_dir aligngpt-7b-pretrain

On two CPU cores, with tiny parts:

    python -m aligngpt.training.pretrain --config pretrain_tiny_cpu --vision_model_name_or_path clip \
        --text_model_name_or_path llama --train_file pairs.jsonl --image_folder images --output_dir stage1

The output folder is an ordinary checkpoint: `AutoModelForImageTextToText.from_pretrained` loads it, and `sft.py` takes
it as `--model_name_or_path`.
"""

import sys

from transformers import set_seed
from trl import ModelConfig, SFTConfig, TrlParser

from aligngpt.composing import compose
from aligngpt.training.arguments import ComposeArguments, DataArguments, find_recipe
from aligngpt.training.data import AlignGPTDataCollator, load_training_data
from aligngpt.training.stages import select_trainable
from aligngpt.training.trainer import AlignGPTTrainer, load_checkpoint


def main(
    data_args: DataArguments, compose_args: ComposeArguments, training_args: SFTConfig, model_args: ModelConfig
) -> None:
    """
    Trains and saves a stage-1 model.

    Raises:
        ValueError: if neither or both of a composed checkpoint and its two parts are named.
    """
    parts = (compose_args.vision_model_name_or_path, compose_args.text_model_name_or_path)
    if (model_args.model_name_or_path is None) == (None in parts):
        raise ValueError(
            "Name either a composed model (--model_name_or_path) or its parts (--vision_model_name_or_path and "
            "--text_model_name_or_path)."
        )
    set_seed(training_args.seed)  # the new modules are drawn before the trainer would set the seed
    if model_args.model_name_or_path is not None:
        model, processor = load_checkpoint(model_args)
    else:
        model, processor = compose(
            *parts,
            chat_template=compose_args.chat_template,
            dtype=model_args.dtype,
            attn_implementation=model_args.attn_implementation,
            num_alignment_levels=compose_args.num_alignment_levels,
        )
    select_trainable(model, "pretrain")
    # Stage 1 sees images as CLIP does, centre-cropped; stage 2 pads them to a square
    processor.image_processor.do_pad = False

    trainer = AlignGPTTrainer(
        model=model,
        args=training_args,
        train_dataset=load_training_data(data_args.train_file, data_args.image_folder),
        data_collator=AlignGPTDataCollator(
            processor=processor,
            max_length=training_args.max_length,
            pad_to_multiple_of=training_args.pad_to_multiple_of,
            chat_template="plain",
            num_alignment_levels=model.config.num_alignment_levels,
        ),
        processing_class=processor,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)


if __name__ == "__main__":
    parser = TrlParser((DataArguments, ComposeArguments, SFTConfig, ModelConfig))
    main(*parser.parse_args_and_config(args=find_recipe(sys.argv[1:])))
