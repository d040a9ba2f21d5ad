"""
Direct preference optimisation of an AlignGPT with TRL's own DPOTrainer: nothing of it is special to AlignGPT. The
answers of a model are compared in pairs, a chosen one and a rejected one, about an image.

    python examples/dpo.py --model_name_or_path aligngpt-7b --dataset_name openbmb/RLAIF-V-Dataset \
        --output_dir aligngpt-7b-dpo --use_peft true --bf16 true
    python examples/dpo.py --model_name_or_path demo_output/stage2 --output_dir dpo --use_cpu true --bf16 false \
        --dataset_name preferences --learning_rate 1e-4 --max_steps 20

The data set has `images`, `prompt`, `chosen` and `rejected`, texts as lists of messages; or, as in RLAIF-V, `image`,
`question` and strings. The gate reads the prompt only, so chosen and rejected answers see the same alignment vector.
"""

import sys

from datasets import Image, List, load_dataset
from trl import DPOConfig, DPOTrainer, ModelConfig, ScriptArguments, TrlParser

from aligngpt.training.checkpoints import load_model, load_processor
from aligngpt.training.stages import get_lora_config, select_trainable


def to_messages(row: dict) -> dict:
    """RLAIF-V's columns as messages; messages as they are."""
    if isinstance(row["chosen"], str):
        images = row["images"] if row.get("images") is not None else [row["image"]]
        return {
            "images": images,
            "prompt": [{"role": "user", "content": row["question"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
    return {name: row[name] for name in ("images", "prompt", "chosen", "rejected")}


def main(script_args: ScriptArguments, training_args: DPOConfig, model_args: ModelConfig) -> DPOTrainer:
    """Trains and saves; returns the trainer."""
    processor, model = load_processor(model_args), load_model(model_args)
    if not model_args.use_peft:
        select_trainable(model, "sft")  # the tower and the alignment embeddings stay as they are
    dataset = load_dataset(script_args.dataset_name, name=script_args.dataset_config, split="train")
    dataset = dataset.map(to_messages, remove_columns=dataset.column_names)
    training_args.max_length = None  # cutting would cut through images
    trainer = DPOTrainer(
        model=model,
        args=training_args,
        train_dataset=dataset.cast_column("images", List(Image())),
        processing_class=processor,
        peft_config=get_lora_config(model, model_args),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    return trainer


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, DPOConfig, ModelConfig))
    main(*parser.parse_args_and_config(args=sys.argv[1:]))
