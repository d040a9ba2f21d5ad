"""
What all runs share: pictures and records, a tiny CLIP, a tiny LLaMA, and the pairs' alignment levels. About 15 minutes
on two CPU cores, made once.
"""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from data import draw_scenes, read_jsonl, write_chats, write_conversations, write_jsonl, write_pairs, write_questions
from datasets import load_dataset
from experiments import LEVELS, STAGES_1, Size
from language import caption, random_writer
from library import look_up, read_all
from tiny.clip import train_clip
from tiny.llama import train_llama
from world import IMAGE_SIZE

from aligngpt.processing.levels import command as levels_command
from aligngpt.processing.scoring import command as score_command


def draw(data: Path, size: Size) -> None:
    """Pictures and records of all splits, and the web on which CLIP is trained, unless they are there."""
    if (data / "done").exists():
        return
    scenes = draw_scenes(data, size.num_train, seed=0)
    write_pairs(data, scenes, seed=1)
    write_conversations(data, scenes, seed=2)
    write_questions(data, scenes[: size.num_test], "train", seed=3)
    for seed, split in enumerate(("validation", "test")):
        write_questions(data, draw_scenes(data, size.num_test, seed=4 + seed, split=split), split, seed=6 + seed)
    write_chats(data, data / "validation.jsonl")

    rng, records = random.Random(101), []
    for image, scene in draw_scenes(data / "web", size.num_web, seed=100):
        records.append({"image": image, "caption": caption(scene, random_writer(rng), rng)})
    write_jsonl(data / "web" / "pairs.jsonl", records)
    (data / "done").touch()


def make_levels(data: Path, clip: Path, output: Path) -> None:
    """Scores the pairs and cuts the scores into the levels of every stage 1, unless they are there."""
    scores = output / "scores"
    for num_levels in sorted({stage.num_levels for stage in STAGES_1.values() if stage.levels == "scored"}):
        levels = output / f"levels{num_levels}"
        if (levels / "alignment_levels.json").exists():
            continue
        shutil.rmtree(levels, ignore_errors=True)
        score_command.main(
            ["--data", str(data / "pairs.jsonl"), "--image_folder", str(data), "--scorer", str(clip)]
            + ["--output_dir", str(scores), "--batch_size", "256"]
        )
        levels_command.main([str(scores), "--output_dir", str(levels), "--num_levels", str(num_levels)])
    pairs = read_jsonl(data / "pairs.jsonl")
    rng = random.Random(8)
    levels = {"constant": [1] * len(pairs), "random": [rng.randrange(LEVELS) for _ in pairs]}
    for name, values in levels.items():
        rows = ({**pair, "alignment_level": level} for pair, level in zip(pairs, values, strict=True))
        write_jsonl(output / f"levels_{name}.jsonl", rows)


def summarise_scores(data: Path, output: Path, num_bins: int = 40) -> dict:
    """
    Of the pairs' similarities: the cut points, a histogram with the mean true quality in each bin, and the rank
    correlation of similarity and true quality.
    """
    levels = output / f"levels{LEVELS}"
    rows = load_dataset("parquet", data_files=f"{levels}/*.parquet", split="train")
    pairs = pd.DataFrame({"similarity": rows["alignment_score"], "level": rows["alignment_level"]}, rows["row"])
    pairs["quality"] = pd.Series([pair["quality"] for pair in read_jsonl(data / "pairs.jsonl")])
    edges = np.linspace(pairs["similarity"].min(), pairs["similarity"].max(), num_bins + 1)
    bins = np.digitize(pairs["similarity"], edges[1:-1])
    return {
        "cut_points": json.loads((levels / "alignment_levels.json").read_text())["cut_points"],
        "edges": edges.round(4).tolist(),
        "counts": np.bincount(bins, minlength=num_bins).tolist(),
        "quality": [
            round(pairs["quality"][bins == i].mean(), 3) if (bins == i).any() else None for i in range(num_bins)
        ],
        "quality_of_levels": pairs.groupby("level")["quality"].mean().round(3).tolist(),
        "rank_correlation": pairs[["similarity", "quality"]].corr("spearman").iloc[0, 1],
    }


def make_parts(output: Path, size: Size) -> Path:
    """All parts, or finds them there; returns the folder of the data."""
    data = output / "data"
    draw(data, size)
    web = data / "web" / "pairs.jsonl"
    train_clip(web, output / "clip", IMAGE_SIZE, epochs=size.clip_epochs, batch_size=size.clip_batch_size)
    lessons = list(zip((look_up, read_all), size.llama_steps, strict=True))
    train_llama(output / "llama", lessons, num_texts=size.num_texts, num_heads=8)
    make_levels(data, output / "clip", output)
    return data
