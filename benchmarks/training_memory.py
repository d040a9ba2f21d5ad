"""
What memory a GPU needs for each recipe: estimated, and on a GPU measured with random weights of the real size.

    python benchmarks/training_memory.py                                    # the estimates, as in the README
    python benchmarks/training_memory.py --measure sft_7b_qlora_24gb        # three steps of it, with a random 7B model
    python benchmarks/training_memory.py --measure sft_7b --optim adamw_bnb_8bit --per_device_train_batch_size 4

The estimate, in bytes, for B rows of L tokens a GPU, P_t trained and P_f frozen parameters on n GPUs:

    frozen weights      2 P_f in half precision; 0.52 a parameter in 4 bits with double quantisation
    trained weights     18 P_t: float32 weights, gradients and AdamW's two moments, and a half-precision copy in use;
                        with ZeRO 2 P_t + 16 P_t / n (stage 2), and 18 P_t / n, 2 P_f / n and 2 GB of buffers (stage 3)
    activations         2 B L (layers D + 2 (8 D + 4 I)): the inputs of all blocks, and all of one block and its
                        gradients, of hidden size D and intermediate size I, with gradient checkpointing
    all else            2 GB: CUDA itself, the tower's forward pass, the tiles of the head (logits are never whole)

Measured: `torch.cuda.max_memory_allocated` and tokens per second of the last step, of rows that fill `max_length`, one
image each. Without --measure no GPU is needed.
"""

import argparse
import json
import tempfile
from importlib.resources import files
from pathlib import Path

import torch
import yaml
from PIL import Image
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from trl import ModelConfig, TrlParser

from aligngpt import AlignGPTConfig, AlignGPTForConditionalGeneration
from aligngpt.processing.tokenization import prepare_tokenizer
from aligngpt.training import pretrain, sft
from aligngpt.training.arguments import AblationArguments, ComposeArguments, DataArguments, StageConfig, find_recipe
from aligngpt.training.stages import get_lora_config, select_trainable
from aligngpt.weights.composing import assemble


# Vicuna-7B and -13B, LLaMA-3-8B; CLIP ViT-L/14-336: the sizes in their published configurations
LANGUAGE_MODELS = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    | {"num_key_value_heads": 8, "vocab_size": 128256},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
}
TOWER = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
TOWER |= {"image_size": 336, "patch_size": 14}
TINY_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_TOWER |= {"image_size": 336, "patch_size": 28}
GIB = 2**30


def get_size(recipe: str) -> str:
    """The size of language model that a recipe is for."""
    return next(size for size in ("13b", "8b", "7b") if f"_{size}" in recipe)


def estimate(name: str) -> tuple[str, float, float]:
    """How a recipe's weights are spread over GPUs, its trained parameters in millions, and GiB a GPU."""
    recipe = yaml.safe_load(files("aligngpt.training").joinpath("recipes", f"{name}.yaml").read_text())
    text, vision = LlamaConfig(**LANGUAGE_MODELS[get_size(name)]), CLIPVisionConfig(**TOWER)
    with torch.device("meta"):
        model = AlignGPTForConditionalGeneration(AlignGPTConfig(vision_config=vision, text_config=text))
    model.config.alignment_mode = recipe.get("alignment_mode", "adaptive")
    total, blocks = model.num_parameters(), sum(p.numel() for p in model.model.language_model.layers.parameters())
    if recipe.get("use_peft"):
        rank = recipe["lora_r"]
        lora = get_lora_config(model, ModelConfig(use_peft=True, lora_r=rank))
        linear = [m for m in model.model.language_model.layers.modules() if isinstance(m, torch.nn.Linear)]
        whole = [model.get_submodule(path) for path in lora.modules_to_save]
        trained = sum(rank * (m.in_features + m.out_features) for m in linear)
        trained += sum(p.numel() for module in whole for p in module.parameters())
        frozen, num_gpus, spread = total, 1, "each GPU has all"
    else:
        select_trainable(model, "pretrain" if name.startswith("pretrain") else "sft")
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        frozen, num_gpus = total - trained, 8
        spread = "ZeRO-2, 8 GPUs" if name.startswith("pretrain") else "ZeRO-3, 8 GPUs"
    frozen_bytes = 2 * frozen - (2 - 0.52) * blocks * recipe.get("load_in_4bit", False)
    if "ZeRO-3" in spread:
        weights = (18 * trained + frozen_bytes) / num_gpus + 2 * GIB
    elif "ZeRO-2" in spread:
        weights = frozen_bytes + 2 * trained + 16 * trained / num_gpus
    else:
        weights = frozen_bytes + 18 * trained
    tokens = recipe["per_device_train_batch_size"] * recipe["max_length"]
    width, inner = text.hidden_size, text.intermediate_size
    activations = 2 * tokens * (text.num_hidden_layers * width + 2 * (8 * width + 4 * inner))
    return spread, trained / 1e6, (weights + activations) / GIB + 2


def write_model(folder: Path, size: str) -> None:
    """An AlignGPT of random weights with a tokenizer of a few words, in bfloat16, as stage 1 would leave it."""
    words = ["<unk>", "<s>", "</s>", *(chr(code) for code in range(33, 127)), "word"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )
    device, tower = "cuda" if torch.cuda.is_available() else "cpu", TINY_TOWER if size == "tiny" else TOWER
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):  # normal numbers for billions of weights take minutes on a CPU
            language_model = LlamaForCausalLM(LlamaConfig(**LANGUAGE_MODELS[size], max_position_embeddings=4096))
            vision_tower = CLIPVisionModel(CLIPVisionConfig(**tower))
    finally:
        torch.set_default_dtype(torch.float32)
    images = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    parts = assemble(language_model.cpu(), vision_tower.cpu(), prepare_tokenizer(tokenizer), images, "vicuna_v1")
    for part in parts:
        part.save_pretrained(folder)


def write_rows(folder: Path, num_rows: int, max_length: int, tokens_per_image: int) -> None:
    """Conversations about one image that fill the length, with levels."""
    Image.new("RGB", (640, 480), "gray").save(folder / "image.jpg")
    answer = "word " * (max_length - tokens_per_image - 64)
    turns = [{"from": "human", "value": "<image>\nword"}, {"from": "gpt", "value": answer}]
    rows = [{"id": i, "image": "image.jpg", "conversations": turns, "alignment_level": i % 8} for i in range(num_rows)]
    (folder / "rows.json").write_text(json.dumps(rows))


def measure(recipe: str, *arguments: str, size: str | None = None, model: Path | None = None) -> dict[str, float]:
    """
    Three steps of a recipe on one device.

    Args:
        recipe (`str`): its name; on one GPU, so that batch and sharding are what one GPU has of it.
        arguments (`str`): more arguments of the script.
        size (`str`, *optional*): `"tiny"` to try it on a CPU; that of the recipe otherwise.
        model (`Path`, *optional*): what `write_model` wrote, to be used again.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if model is None:
            write_model(model := folder / "model", size or get_size(recipe))
        arguments = ["--config", recipe, "--max_steps", "3", "--save_strategy", "no", *arguments]
        arguments += ["--data", str(folder / "rows.json"), "--image_folder", str(folder)]
        arguments += ["--model_name_or_path", str(model), "--output_dir", str(folder / "out")]
        own = ComposeArguments if recipe.startswith("pretrain") else AblationArguments
        parser = TrlParser((DataArguments, own, StageConfig, ModelConfig))
        parsed = parser.parse_args_and_config(args=find_recipe(arguments))
        config = AlignGPTConfig.from_pretrained(model)
        num_rows = 3 * parsed[2].per_device_train_batch_size * parsed[2].gradient_accumulation_steps
        write_rows(folder, num_rows, parsed[2].max_length, config.image_seq_length)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        trainer = (pretrain if own is ComposeArguments else sft).main(*parsed)
        logs = [log for log in trainer.state.log_history if "loss" in log]
    return {
        "loss": logs[-1]["loss"],
        "tokens_per_second": logs[-1]["tokens_per_second"],
        "gib": logs[-1].get("peak_gpu_memory_gib", logs[-1].get("memory_gib")),
    }


def main() -> None:
    """Prints the table of estimates, or one measurement."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--measure", metavar="RECIPE", help="measure this recipe; more arguments go to its script")
    parser.add_argument("--size", choices=LANGUAGE_MODELS, help="of the random language model; that of the recipe")
    args, rest = parser.parse_known_args()
    if args.measure is not None:
        result = measure(args.measure, *rest, size=args.size)
        numbers = f"{result['gib']:.1f} GiB, {result['tokens_per_second']:.0f} tokens/s, loss {result['loss']:.3f}"
        Console().print(f"{args.measure} {' '.join(rest)}: {numbers}", highlight=False)
        return
    table = Table("recipe", "weights", "trained, millions", "GiB a GPU, estimated")
    for path in sorted(files("aligngpt.training").joinpath("recipes").iterdir(), key=lambda path: path.name):
        if "tiny" not in path.name:
            spread, trained, memory = estimate(path.name.removesuffix(".yaml"))
            table.add_row(path.name.removesuffix(".yaml"), spread, f"{trained:.1f}", f"{memory:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
