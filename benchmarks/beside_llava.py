"""
What AlignGPT costs beside transformers' LLaVA of the same weights, step by step in turns in one process:

    python benchmarks/beside_llava.py                                       # small enough for a CPU
    python benchmarks/beside_llava.py --size 7b --device cuda --json beside_llava.json
    python benchmarks/beside_llava.py --size 7b --device cuda --load_in_4bit

Rows: a training step (forward and backward) of what stage 1 and stage 2 train; prefill; one more token with a cache,
also with compiled steps (`--compile`, CUDA). Each number is the median over rounds; AlignGPT's rows are longer by
`<align>`. Both models hold the same tensors, so memory is that of one model and what its own pass needs.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from training_memory import GIB, LANGUAGE_MODELS, TOWER
from transformers import (
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

from aligngpt import AlignGPTConfig, AlignGPTForConditionalGeneration


# On a CPU: the language model takes most of the time, as in 7B, and a step about a second
CPU_LANGUAGE_MODEL = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 4, "num_attention_heads": 8}
CPU_TOWER = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
CPU_TOWER |= {"image_size": 224, "patch_size": 14}
IMAGE, ALIGN, BOS = 32000, 32001, 1
NEW_TOKENS = 16


def share_weights(ours: PreTrainedModel, theirs: PreTrainedModel) -> dict[str, PreTrainedModel]:
    """Puts AlignGPT's modules into a LLaVA on the meta device."""
    for name in ("vision_tower", "multi_modal_projector", "language_model"):
        setattr(theirs.model, name, getattr(ours.model, name))
    theirs.lm_head = ours.lm_head
    return {"AlignGPT": ours.eval(), "LLaVA": theirs.eval()}


def make_models(size: str, device: str, dtype: torch.dtype) -> dict[str, PreTrainedModel]:
    """An AlignGPT of random weights and a LLaVA that holds the same tensors."""
    text = CPU_LANGUAGE_MODEL if size == "cpu" else LANGUAGE_MODELS[size]
    parts = {
        "text_config": LlamaConfig(**text | {"vocab_size": 32064}, max_position_embeddings=4096),
        "vision_config": CLIPVisionConfig(**(CPU_TOWER if size == "cpu" else TOWER)),
        "image_token_index": IMAGE,
    }
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            ours = AlignGPTForConditionalGeneration(AlignGPTConfig(**parts, align_token_id=ALIGN))
        with torch.device("meta"):
            theirs = LlavaForConditionalGeneration(LlavaConfig(**parts, image_seq_length=ours.config.image_seq_length))
    finally:
        torch.set_default_dtype(torch.float32)
    return share_weights(ours, theirs)


def make_inputs(model: PreTrainedModel, batch_size: int, text_tokens: int) -> dict[str, torch.Tensor]:
    """Rows of BOS, for AlignGPT `<align>`, one image, and text."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    has_align, image = isinstance(config, AlignGPTConfig), config.image_token_index
    start = [BOS, config.align_token_id] if has_align else [BOS]
    start = torch.tensor([start + [image] * config.image_seq_length]).expand(batch_size, -1)
    text = torch.randint(3, image, (batch_size, text_tokens), generator=generator)
    side = config.vision_config.image_size
    pixels = torch.randn(batch_size, 3, side, side, generator=generator)
    inputs = {"input_ids": torch.cat([start, text], 1), "pixel_values": pixels.to(model.dtype)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if has_align:
        inputs["token_type_ids"] = torch.cat([torch.zeros_like(start), torch.ones_like(text)], 1)
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}


def train_step(model: PreTrainedModel, inputs: dict[str, torch.Tensor], trained: tuple[str, ...]) -> None:
    """Forward and backward, the loss on the text; no optimiser."""
    model.train().requires_grad_(False)
    for name in trained:
        if name in dict(model.named_modules()):
            model.get_submodule(name).requires_grad_(True)
    is_stage1 = "model.language_model" not in trained
    levels = torch.zeros(len(inputs["input_ids"]), dtype=torch.long, device=model.device)
    extra = {"alignment_levels": levels} if is_stage1 and isinstance(model.config, AlignGPTConfig) else {}
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] >= model.config.image_token_index, -100)
    model(**inputs, **extra, labels=labels).loss.backward()
    model.zero_grad(set_to_none=True)
    model.eval().requires_grad_(False)


@torch.inference_mode()
def prefill(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    model(**inputs, use_cache=True, logits_to_keep=1)


@torch.inference_mode()
def generate(model: PreTrainedModel, inputs: dict[str, torch.Tensor], new_tokens: int, **options) -> torch.Tensor:
    options |= {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
    return model.generate(**inputs, **options)


def measure(run: Callable[[], object], device: str) -> tuple[float, float]:
    """Seconds by the clock, and GiB that the call takes above what it began with (0 on a CPU)."""
    if device != "cuda":
        before = time.perf_counter()
        run()
        return time.perf_counter() - before, 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held, before = torch.cuda.memory_allocated(), time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - before, (torch.cuda.max_memory_allocated() - held) / GIB


def compare(
    runs: dict[str, Callable[[], object]],
    device: str,
    rounds: int,
    less: dict[str, Callable[[], object]] | None = None,
) -> dict[str, float]:
    """
    Runs both models in turns; the first round warms up.

    Args:
        less (`dict`, *optional*): runs whose seconds are subtracted, as those of the prompt from whole answers.
    """
    seconds, memory = {name: [] for name in runs}, dict.fromkeys(runs, 0.0)
    for index in range(rounds + 1):
        for name, run in runs.items():
            took, gib = measure(run, device)
            if less is not None:
                took -= measure(less[name], device)[0]
            if index:
                seconds[name].append(took)
                memory[name] = max(memory[name], gib)
    ours, theirs = (statistics.median(seconds[name]) for name in ("AlignGPT", "LLaVA"))
    ratios = [a / b for a, b in zip(seconds["AlignGPT"], seconds["LLaVA"], strict=True)]
    return {
        "aligngpt_ms": 1000 * ours,
        "llava_ms": 1000 * theirs,
        "ratio": statistics.median(ratios),
        "aligngpt_gib": memory["AlignGPT"],
        "llava_gib": memory["LLaVA"],
    }


def compare_all(models: dict[str, PreTrainedModel], args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Every row of the table."""
    rows = {}
    for batch_size in args.batch_sizes:
        inputs = {name: make_inputs(model, batch_size, args.text_tokens) for name, model in models.items()}

        def both(call, *arguments, inputs=inputs, **options):
            return {name: lambda name=name: call(models[name], inputs[name], *arguments, **options) for name in models}

        if not args.load_in_4bit:
            bridge = ("model.multi_modal_projector", "model.alignment_embeddings", "model.alignment_gate")
            stages = {"stage-1 step": bridge[:2], "stage-2 step": (*bridge, "model.language_model", "lm_head")}
            for title, trained in stages.items():
                rows[f"{title}, batch {batch_size}"] = compare(both(train_step, trained), args.device, args.rounds)
        rows[f"prefill, batch {batch_size}"] = compare(both(prefill), args.device, args.rounds)
        for title, options in {"": {}, ", compiled": {"cache_implementation": "static"}}.items():
            if title and not args.compile:
                continue
            first, whole = both(generate, 1, **options), both(generate, 1 + NEW_TOKENS, **options)
            row = compare(whole, args.device, args.rounds, less=first)
            row |= {name: row[name] / NEW_TOKENS for name in ("aligngpt_ms", "llava_ms")}
            rows[f"one more token, batch {batch_size}{title}"] = row
    return rows


def load_in_4bit(folder: Path, dtype: torch.dtype) -> tuple[dict[str, PreTrainedModel], dict[str, float]]:
    """The AlignGPT of a folder with its language model in NF4, a LLaVA of the same tensors, and what loading took."""
    skipped = ["model.vision_tower", "model.multi_modal_projector", "model.alignment_gate", "lm_head"]
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skipped,
    )
    before = time.perf_counter()
    ours = AutoModelForImageTextToText.from_pretrained(
        folder, quantization_config=config, dtype=dtype, device_map="cuda"
    )
    loading = {"seconds": time.perf_counter() - before, "gib": torch.cuda.memory_allocated() / GIB}
    parts = {"text_config": ours.config.text_config, "vision_config": ours.config.vision_config}
    with torch.device("meta"):
        theirs = LlavaForConditionalGeneration(LlavaConfig(**parts, image_token_index=ours.config.image_token_index))
    return share_weights(ours, theirs), loading


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["cpu", *LANGUAGE_MODELS], default="cpu")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default=None, help="float32 on a CPU, else bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--text_tokens", type=int, default=64)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--load_in_4bit", type=Path, metavar="FOLDER", help="the model of this folder, in 4 bits")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype or ("bfloat16" if args.device == "cuda" else "float32"))
    result = {"size": args.size, "dtype": str(dtype), "device": args.device, "torch": torch.__version__}
    if args.device == "cuda":
        result["device"] = torch.cuda.get_device_name()
    if args.load_in_4bit:
        models, result["loading"] = load_in_4bit(args.load_in_4bit, dtype)
    else:
        models = make_models(args.size, args.device, dtype)
    result["rows"] = compare_all(models, args)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    title = f"{result['device']}, {'4 bits' if args.load_in_4bit else dtype}, {args.size}"
    table = Table("", "AlignGPT, ms", "LLaVA, ms", "ratio", "GiB above the weights", title=title)
    for label, row in result["rows"].items():
        memory = f"{row['aligngpt_gib']:.2f} ({row['llava_gib']:.2f})" if args.device == "cuda" else ""
        times = (f"{row[name]:.2f}" for name in ("aligngpt_ms", "llava_ms"))
        table.add_row(label, *times, f"{row['ratio']:.3f}", memory)
    console = Console(width=119, highlight=False)
    console.print(table)
    if args.load_in_4bit:
        console.print("loaded in {seconds:.1f} s, {gib:.1f} GiB".format(**result["loading"]))


if __name__ == "__main__":
    main()
