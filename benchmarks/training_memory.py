"""
What memory a GPU needs for each recipe: estimated, and on a GPU measured with random weights of the real size.

    python benchmarks/training_memory.py                                    # the estimates, as in the README
    python benchmarks/training_memory.py --measure sft_7b_qlora_24gb        # some steps of it, with a random 7B model
    python benchmarks/training_memory.py --measure sft_7b --optim adamw_bnb_8bit --per_device_train_batch_size 4
    python benchmarks/training_memory.py --write_model random_7b            # the model once, for several --measure:
    python benchmarks/training_memory.py --measure sft_7b_lora --model random_7b --json sft_7b_lora.json

The estimate, in bytes, for B rows of L tokens a GPU, P_t trained and P_f frozen parameters on n GPUs:

    frozen weights      2 P_f in half precision; 0.52 a parameter in 4 bits with double quantisation
    trained weights     18 P_t: float32 weights, gradients and AdamW's two moments, and a half-precision copy in use;
                        with ZeRO 2 P_t + 16 P_t / n (stage 2), and 18 P_t / n, 2 P_f / n and 2 GB of buffers (stage 3)
    activations         2 B L (layers D + 2 (8 D + 4 I)): the inputs of all blocks, and all of one block and its
                        gradients, of hidden size D and intermediate size I, with gradient checkpointing
    all else            2 GB: CUDA itself, the tower's forward pass, the tiles of the head (logits are never whole)

Measured: `torch.cuda.max_memory_allocated`, and the median tokens per second of all steps but the first, of rows that
fill `max_length`, one image each. MFU is the share of the GPU's bf16 peak that the model's own arithmetic takes: 2 P a
token forward, as much again for the gradients of the inputs and again for those of the weights that are trained, and
attention's 2 layers L D (causal) forward and twice that backward; what checkpointing computes again is not counted.
Without --measure no GPU is needed.
"""

import argparse
import json
import statistics
import tempfile
from importlib.resources import files
from pathlib import Path
from unittest.mock import patch

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
from trl import ModelConfig

from aligngpt import AlignGPTConfig, AlignGPTForConditionalGeneration
from aligngpt.processing.tokenization import prepare_tokenizer
from aligngpt.training import pretrain, sft
from aligngpt.training.command_line import StageParser
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
# Dense bf16 TFLOP/s, from NVIDIA's data sheets
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L4": 121, "A10": 125, "4090": 165}
STEPS = 5


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


def count_flops(model: torch.nn.Module, max_length: int) -> float:
    """
    Arithmetic of the language model for one token of a training step; the tower's, 3% of a row of 2048 tokens, and
    the gate's are left out.
    """
    text = model.config.text_config
    linear = [m for m in model.model.language_model.modules() if isinstance(m, torch.nn.Linear)] + [model.lm_head]
    size = {m: m.in_features * m.out_features for m in linear}  # a 4-bit layer's stored tensor has another shape
    trained = sum(size[m] for m in linear if m.weight.requires_grad)
    attention = 2 * text.num_hidden_layers * max_length * text.hidden_size
    return 4 * sum(size.values()) + 2 * trained + 3 * attention


def measure(recipe: str, *arguments: str, size: str | None = None, model: Path | None = None) -> dict[str, float]:
    """
    Some steps of a recipe on one device.

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
        arguments = ["--config", recipe, "--max_steps", str(STEPS), "--save_strategy", "no", *arguments]
        arguments += ["--data", str(folder / "rows.json"), "--image_folder", str(folder)]
        arguments += ["--model_name_or_path", str(model), "--output_dir", str(folder / "out")]
        stage = recipe.partition("_")[0]
        config = AlignGPTConfig.from_pretrained(model)
        write_rows(folder, 1, 1024, config.image_seq_length)  # the parser looks whether they are there
        parsed = StageParser(stage).parse(arguments)
        num_rows = STEPS * parsed[2].per_device_train_batch_size * parsed[2].gradient_accumulation_steps
        write_rows(folder, num_rows, parsed[2].max_length, config.image_seq_length)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        script = {"pretrain": pretrain, "sft": sft}[stage]
        with patch.object(script, "finish"):  # steps are measured, and writing 14 GB takes longer
            trainer = script.main(*parsed)
        logs = [log for log in trainer.state.log_history if "loss" in log]
    speed = statistics.median(log["tokens_per_second"] for log in logs[1:])
    result = {
        "loss": logs[-1]["loss"],
        "tokens_per_second": speed,
        "gib": logs[-1].get("peak_gpu_memory_gib", logs[-1].get("memory_gib")),
    }
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        peak = next((tflops for card, tflops in PEAK_TFLOPS.items() if card in name), None)
        trained = trainer.accelerator.unwrap_model(trainer.model)
        trained = trained.get_base_model() if hasattr(trained, "get_base_model") else trained
        tflops = speed * count_flops(trained, parsed[2].max_length) / 1e12
        result |= {"device": name, "tflops": tflops} | ({} if peak is None else {"mfu": tflops / peak})
    return result


def main() -> None:
    """Prints the table of estimates, or one measurement."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--measure", metavar="RECIPE", help="measure this recipe; more arguments go to its script")
    parser.add_argument("--size", choices=LANGUAGE_MODELS, help="of the random language model; that of the recipe")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="what --write_model wrote, to be used again")
    parser.add_argument("--write_model", type=Path, metavar="FOLDER", help="write the random model and end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the measurement goes as well")
    args, rest = parser.parse_known_args()
    console = Console(highlight=False)
    if args.write_model is not None:
        write_model(args.write_model, args.size or "7b")
    elif args.measure is not None:
        result = measure(args.measure, *rest, size=args.size, model=args.model)
        result |= {"recipe": args.measure, "arguments": " ".join(rest), "torch": torch.__version__}
        if args.json is not None:
            args.json.write_text(json.dumps(result, indent=2) + "\n")
        share = f", MFU {result['mfu']:.0%}" if "mfu" in result else ""
        numbers = f"{result['gib']:.1f} GiB, {result['tokens_per_second']:.0f} tokens/s{share}"
        console.print(f"{args.measure} {' '.join(rest)}: {numbers}, loss {result['loss']:.3f}")
    else:
        table = Table("recipe", "weights", "trained, millions", "GiB a GPU, estimated")
        for path in sorted(files("aligngpt.training").joinpath("recipes").iterdir(), key=lambda path: path.name):
            if "tiny" not in path.name:
                spread, trained, memory = estimate(path.name.removesuffix(".yaml"))
                table.add_row(path.name.removesuffix(".yaml"), spread, f"{trained:.1f}", f"{memory:.0f}")
        console.print(table)


if __name__ == "__main__":
    main()
