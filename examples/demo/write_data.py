"""Writes the demo's pictures and records: captioned pairs (stage 1), conversations (stage 2), questions (test)."""

import random
from pathlib import Path

from scenes import Scene, Thing, random_scene, render
from texts import QUALITIES, QUESTION_TYPES, QUESTION_WEIGHTS, ask, caption
from tiny.records import SYSTEM, write_jsonl
from tqdm import tqdm


def write_scenes(folder: Path, n: int, seed: int, test: bool = False) -> list[tuple[str, Scene]]:
    """Draws `n` scenes into `folder`/images; returns (file name relative to `folder`, scene) for each."""
    rng = random.Random(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    split = "test" if test else "train"
    scenes = []
    for index in tqdm(range(n), desc=f"drawing {split} scenes", leave=False):
        name, scene = f"images/{split}-{index:05d}.png", random_scene(rng, test)
        render(scene, rng).save(folder / name, compress_level=1)
        scenes.append((name, scene))
    return scenes


def write_pairs(folder: Path, scenes: list[tuple[str, Scene]], seed: int) -> Path:
    """Stage 1: pairs.jsonl with id, image, caption, and quality (never read by the training, only by the report)."""
    rng = random.Random(seed)
    records = []
    for index, (image, scene) in enumerate(scenes):
        quality = QUALITIES[index % len(QUALITIES)]
        text = caption(scene, quality, rng)
        records.append({"id": f"pair-{index:05d}", "image": image, "caption": text, "quality": quality})
    return write_jsonl(folder / "pairs.jsonl", records)


def conversation(scene: Scene, turns: int, rng: random.Random) -> list[dict[str, str]]:
    """
    `turns` different questions about a scene, or all that there are, as chat messages; the processor puts the picture
    before the first.
    """
    asked: dict[str, str] = {}
    while len(asked) < min(turns, 2 * len(scene.things) + 2):  # colour and shape of each, how many, describe
        item = ask(scene, *rng.choices(QUESTION_TYPES, QUESTION_WEIGHTS), rng)
        asked.setdefault(item.question, item.answer)
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for turn in asked.items() for role, text in zip(roles, turn, strict=True)]


def write_conversations(folder: Path, scenes: list[tuple[str, Scene]], turns: int, seed: int) -> Path:
    """Stage 2: conversations.jsonl with id, image and messages."""
    rng = random.Random(seed)
    return write_jsonl(
        folder / "conversations.jsonl",
        (
            {
                "id": f"chat-{index:05d}",
                "image": image,
                "messages": [{"role": "system", "content": SYSTEM}, *conversation(scene, turns, rng)],
            }
            for index, (image, scene) in enumerate(scenes)
        ),
    )


def write_questions(folder: Path, scenes: list[tuple[str, Scene]], seed: int) -> Path:
    """Test: questions.jsonl, one of each type per test scene, about a held-out thing where the type allows."""
    rng = random.Random(seed)
    records = []
    for index, (image, scene) in enumerate(scenes):
        for kind in QUESTION_TYPES:
            item = ask(scene, kind, rng, about=scene.held_out)
            records.append(
                {"id": f"test-{index:05d}-{kind}", "image": image, "things": scene.things, **item._asdict()}
            )
    return write_jsonl(folder / "questions.jsonl", records)


def scene_of(record: dict) -> Scene:
    """The scene of a record of questions.jsonl."""
    return Scene(tuple(Thing(*thing) for thing in record["things"]))
