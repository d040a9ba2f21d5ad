"""
How fast `aligngpt score` is, beside what one would write without it, in one run over the same pairs:

    python benchmarks/scoring.py                 # a tiny CLIP: preprocessing dominates
    python benchmarks/scoring.py --large         # a random CLIP of ViT-L/14-336's size: the model dominates
    python benchmarks/scoring.py --large --device cuda --pairs 20000

Rows: `aligngpt score`, whole, from JSON and JPEG files to parquet; one pair at a time through transformers' processor
and model; the same processor batched in a DataLoader; and the model alone on tensors that are ready. Loading the model
is not counted. CPU seconds are this process's and its workers'. Similarities have to agree to 1e-5 (1e-3 in float16).
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.utils.data import DataLoader
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
)

from aligngpt.processing.scoring.arguments import ScoreArguments
from aligngpt.processing.scoring.run import score_corpus


WORDS = [
    "a",
    "photo",
    "of",
    "the",
    "red",
    "blue",
    "large",
    "old",
    "cat",
    "dog",
    "bird",
    "house",
    "tree",
    "on",
    "under",
    "with",
]


def write_scorer(folder: Path, large: bool) -> None:
    """A CLIP with random weights: ViT-L/14-336's size, or tiny with the same preprocessing."""
    vocabulary = {word: index for index, word in enumerate(["<start>", "<end>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>", pad_token="<end>", model_max_length=77
    )
    width, layers, heads, patch = (1024, 24, 16, 14) if large else (32, 1, 2, 112)
    vision = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    vision |= {"num_attention_heads": heads, "image_size": 336, "patch_size": patch}
    width, layers, heads = (768, 12, 12) if large else (32, 1, 2)
    text = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    text |= {"num_attention_heads": heads, "vocab_size": 49408 if large else len(tokenizer), "eos_token_id": 1}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)
    CLIPModel(config).save_pretrained(folder)
    size = {"height": 336, "width": 336}
    CLIPProcessor(CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=size), tokenizer).save_pretrained(
        folder
    )


def write_corpus(folder: Path, pairs: int) -> tuple[list[str], list[str]]:
    """Smooth noise as 480x360 JPEGs of about 55 KB, and captions of 4 to 16 words."""
    generator, records = np.random.default_rng(0), []
    (folder / "images").mkdir()
    for index in range(pairs):
        noise = Image.fromarray(generator.integers(0, 256, (45, 60, 3), dtype=np.uint8))
        noise.resize((480, 360)).save(folder / "images" / f"{index}.jpg", quality=90)
        caption = " ".join(generator.choice(WORDS, generator.integers(4, 17)))
        records.append({"id": str(index), "image": f"{index}.jpg", "caption": caption})
    (folder / "pairs.json").write_text(json.dumps(records))
    return [str(folder / "images" / record["image"]) for record in records], [r["caption"] for r in records]


def seconds() -> tuple[float, float]:
    """CPU seconds of this process and of the workers that ended, and the clock."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system, time.perf_counter()


def measure(run, *arguments):
    """What a call returns, its CPU seconds, its seconds by the clock."""
    before = seconds()
    result = run(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    after = seconds()
    return result, after[0] - before[0], after[1] - before[1]


def score_with_aligngpt(args: argparse.Namespace, folder: Path, scorer: Path) -> np.ndarray:
    """The command, on the first pairs or all."""
    output = tempfile.mkdtemp(dir=folder)
    options = {"image_folder": str(folder / "images"), "num_workers": args.workers, "batch_size": args.batch_size}
    options |= {"data": str(folder / "pairs.json"), "scorer": str(scorer), "output_dir": output}
    score_corpus(ScoreArguments(device=args.device, **options))
    tables = [pq.read_table(file) for file in sorted(Path(output).glob("*.parquet"))]
    return np.concatenate([table["alignment_score"].to_numpy() for table in tables])


@torch.inference_mode()
def similarities(model, inputs) -> torch.Tensor:
    """Cosine similarities of a batch."""
    inputs = {name: tensor.to(model.device, non_blocking=True) for name, tensor in inputs.items()}
    pixel_values = inputs.pop("pixel_values").to(model.dtype)
    images = model.get_image_features(pixel_values=pixel_values).pooler_output
    return torch.cosine_similarity(images.float(), model.get_text_features(**inputs).pooler_output.float())


def one_at_a_time(model, processor, paths, captions) -> np.ndarray:
    """Each pair through transformers' processor by itself."""
    scores = []
    for path, caption in zip(paths, captions, strict=True):
        image = Image.open(path).convert("RGB")
        inputs = processor(images=image, text=caption, truncation=True, return_tensors="pt")
        scores.append(similarities(model, inputs).cpu())
    return torch.cat(scores).numpy()


def batched(model, processor, paths, captions, args) -> np.ndarray:
    """Batches through transformers' processor in the workers of a DataLoader."""

    def collate(indices):
        images = [Image.open(paths[index]).convert("RGB") for index in indices]
        texts = [captions[index] for index in indices]
        return dict(processor(images=images, text=texts, padding=True, truncation=True, return_tensors="pt"))

    loader = DataLoader(range(len(paths)), args.batch_size, collate_fn=collate, num_workers=args.workers)
    return torch.cat([similarities(model, inputs) for inputs in loader]).cpu().numpy()


def model_alone(model, batches) -> np.ndarray:
    """Tensors that are ready, through the model."""
    return torch.cat([similarities(model, inputs) for inputs in batches]).cpu().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.pairs = args.pairs or (32 if args.large else 2000)
    args.batch_size = args.batch_size or (128 if args.device == "cuda" else 16)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scorer = folder / "scorer"
        write_scorer(scorer, args.large)
        (folder / "few").mkdir()
        write_corpus(folder / "few", 1)
        paths, captions = write_corpus(folder, args.pairs)
        dtype = "float16" if args.device == "cuda" else "float32"
        model = AutoModel.from_pretrained(scorer, dtype=dtype).to(args.device).eval()
        processor = CLIPProcessor.from_pretrained(scorer, backend="pil")
        starts = range(0, args.pairs, args.batch_size)
        take = min(len(starts), 4) if args.device == "cuda" else len(starts)
        ready = []
        for start in list(starts)[:take]:
            part = slice(start, start + args.batch_size)
            images = [Image.open(path).convert("RGB") for path in paths[part]]
            ready.append(dict(processor(images=images, text=captions[part], padding=True, return_tensors="pt")))
        model_alone(model, ready[:1])

        _, *loading = measure(score_with_aligngpt, args, folder / "few", scorer)
        expected, *one = measure(one_at_a_time, model, processor, paths, captions)
        ours, *whole = measure(score_with_aligngpt, args, folder, scorer)
        whole = [all_pairs - few for all_pairs, few in zip(whole, loading, strict=True)]
        theirs, *loader = measure(batched, model, processor, paths, captions, args)
        alone, *forward = measure(model_alone, model, ready)
    scale = args.pairs / len(alone)
    rows = {
        "aligngpt score": (ours, *whole),
        "(a) one pair at a time": (expected, *one),
        "(b) processor in a DataLoader": (theirs, *loader),
        "the model alone": (alone, *(scale * value for value in forward)),
    }
    size = "ViT-L/14-336" if args.large else "tiny CLIP"
    title = f"{args.pairs} pairs, {size}, {args.device}, {args.workers} worker(s), {args.threads} thread(s)"
    table = Table(
        "", "pairs / CPU second", "pairs / second", "times (a), CPU", "times (a)", "max difference", title=title
    )
    for label, (scores, cpu, clock) in rows.items():
        difference = np.abs(scores - expected[: len(scores)]).max()
        cpu = max(cpu, 0.01)  # the system counts in hundredths of a second
        values = (args.pairs / cpu, args.pairs / clock, one[0] / cpu, one[1] / clock)
        table.add_row(label, *(f"{value:.2f}" for value in values), f"{difference:.1e}")
    Console(width=119).print(table)
    worst = max(np.abs(scores - expected[: len(scores)]).max() for scores, *_ in rows.values())
    assert worst < (1e-5 if dtype == "float32" else 1e-3), f"Similarities differ by {worst}."


if __name__ == "__main__":
    main()
