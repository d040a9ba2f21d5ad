"""Writes the miniature's pictures and records: captioned pairs (stage 1), conversations (stage 2), questions."""

import json
import random
from pathlib import Path

from language import TASKS, ask, caption, f1, random_writer
from tiny.records import SYSTEM, write_jsonl
from tqdm import tqdm
from world import Scene, Split, Thing, random_scene, render


TURNS = 4  # questions in a conversation


def draw_scenes(folder: Path, n: int, seed: int, split: Split = "train") -> list[tuple[str, Scene]]:
    """Draws `n` scenes into `folder`/images; returns (file name relative to `folder`, scene) for each."""
    rng = random.Random(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    scenes = []
    for index in tqdm(range(n), desc=f"drawing {split} scenes", leave=False):
        name, scene = f"images/{split}-{index:05d}.png", random_scene(rng, split)
        render(scene, rng).save(folder / name, compress_level=1)
        scenes.append((name, scene))
    return scenes


def write_pairs(folder: Path, scenes: list[tuple[str, Scene]], seed: int) -> Path:
    """Stage 1: id, image, caption, and the caption's true quality, which only the report reads."""
    rng, records = random.Random(seed), []
    for index, (image, scene) in enumerate(scenes):
        text = caption(scene, random_writer(rng), rng)
        records.append({"id": f"pair-{index:05d}", "image": image, "caption": text, "quality": f1(text, scene)})
    return write_jsonl(folder / "pairs.jsonl", records)


def conversation(
    scene: Scene, turns: int, rng: random.Random, weights: tuple[float, ...] | None = None
) -> list[dict[str, str]]:
    """Up to `turns` different questions about a scene as chat messages; `weights` of the tasks, equal by default."""
    asked: dict[str, str] = {}
    for _ in range(4 * turns):
        item = ask(scene, *rng.choices(TASKS, weights), rng)
        if item is not None and len(asked) < turns:
            asked.setdefault(item.question, item.answer)
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for turn in asked.items() for role, text in zip(roles, turn, strict=True)]


def write_conversations(folder: Path, scenes: list[tuple[str, Scene]], seed: int) -> Path:
    """Stage 2: id, image and messages."""
    rng, records = random.Random(seed), []
    for index, (image, scene) in enumerate(scenes):
        messages = [{"role": "system", "content": SYSTEM}, *conversation(scene, TURNS, rng)]
        records.append({"id": f"chat-{index:05d}", "image": image, "messages": messages})
    return write_jsonl(folder / "conversations.jsonl", records)


def write_questions(folder: Path, scenes: list[tuple[str, Scene]], split: Split, seed: int) -> Path:
    """One question of each task per scene that allows it, about a held-out thing where that is possible."""
    rng, records = random.Random(seed), []
    for index, (image, scene) in enumerate(scenes):
        for task in TASKS:
            item = ask(scene, task, rng, about=scene.held_out)
            if item is not None:
                row = {"id": f"{split}-{index:05d}-{task}", "image": image, "things": scene.things}
                records.append(row | item._asdict())
    return write_jsonl(folder / f"{split}.jsonl", records)


def write_chats(folder: Path, questions: Path) -> Path:
    """The questions of `write_questions` with their answers, a conversation each, for a loss."""
    records = []
    for record in read_jsonl(questions):
        contents = (SYSTEM, record["question"], record["answer"])
        roles = ("system", "user", "assistant")
        messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
        records.append({"id": record["id"], "image": record["image"], "messages": messages})
    return write_jsonl(folder / f"{questions.stem}_chats.jsonl", records)


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def scene_of(record: dict) -> Scene:
    """The scene of a record of `write_questions`."""
    return Scene(tuple(Thing(*thing) for thing in record["things"]))
