"""What is said about a scene: captions of five qualities, the facts that they state, questions and answers."""

import random
import re
from typing import NamedTuple

from scenes import COLOURS, PLACES, SHAPES, Scene, Thing


QUALITIES = ("wrong", "vague", "one", "all", "places")  # from the worst to the best
VAGUE = ("some shapes", "a small picture", "coloured shapes on a dark background", "a drawing of some shapes")
NUMBERS = ("zero", "one", "two", "three", "four")
# Not "is there a red circle?" nor "where is it?": models of this size stay at chance on these
QUESTION_TYPES = ("colour", "shape", "count", "describe")
QUESTION_WEIGHTS = (4, 4, 2, 1)  # in conversations
FACT = re.compile(rf"(?:({'|'.join(PLACES)}) a )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")


class Fact(NamedTuple):
    """A statement that a scene holds a thing; `place` is None where none is stated."""

    colour: str
    shape: str
    place: str | None


class Question(NamedTuple):
    """A question of one of `QUESTION_TYPES` and its answer."""

    type: str
    question: str
    answer: str


def describe(things: tuple[Thing, ...], places: bool) -> str:
    """Lists things: "a red circle and a blue square", each after its place if `places`."""
    names = [(f"at the {t.place} " if places else "") + f"a {t.colour} {t.shape}" for t in things]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def caption(scene: Scene, quality: str, rng: random.Random) -> str:
    """A caption of one of `QUALITIES`; a wrong one is of a scene that shares no (colour, shape) with this one."""
    if quality == "wrong":
        pairs = {thing[:2] for thing in scene.things}
        things = tuple(
            Thing(*rng.choice([(c, s) for c in COLOURS for s in SHAPES if (c, s) not in pairs]), place)
            for place in sorted(rng.sample(PLACES, rng.randint(1, 4)), key=PLACES.index)
        )
        return caption(Scene(things), rng.choice(("one", "all", "places")), rng)
    if quality == "vague":
        return rng.choice(VAGUE)
    if quality == "one":
        return describe((rng.choice(scene.things),), places=False)
    return describe(scene.things, places=quality == "places")


def facts(text: str) -> set[Fact]:
    """The facts a caption states; anything else in it is ignored."""
    return {Fact(colour, shape, place or None) for place, colour, shape in FACT.findall(text)}


def true_facts(scene: Scene) -> set[Fact]:
    """All that a caption could truly state about the scene, with and without places."""
    return {Fact(*thing) for thing in scene.things} | {Fact(*thing[:2], None) for thing in scene.things}


def precision(text: str, scene: Scene) -> float | None:
    """The share of the stated facts that hold in the scene; None if the text states none."""
    stated = facts(text)
    return len(stated & true_facts(scene)) / len(stated) if stated else None


def ask(scene: Scene, kind: str, rng: random.Random, about: tuple[Thing, ...] | None = None) -> Question:
    """A question of a type, about one of the things in `about` (default: of the scene) where the type allows."""
    thing = rng.choice(about or scene.things)
    if kind == "colour":
        return Question(kind, f"what colour is {thing.place}?", thing.colour)
    if kind == "shape":
        return Question(kind, f"what shape is {thing.place}?", thing.shape)
    if kind == "count":
        return Question(kind, "how many shapes are there?", NUMBERS[len(scene.things)])
    return Question(kind, "describe the picture.", describe(scene.things, places=True))


def type_of(question: str) -> str:
    """Which of `QUESTION_TYPES` a question of `ask` is."""
    starts = {"what colour": "colour", "what shape": "shape", "how many": "count", "describe": "describe"}
    return next(kind for start, kind in starts.items() if question.startswith(start))
