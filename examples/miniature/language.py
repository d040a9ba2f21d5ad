"""
What is said about a scene: captions of any quality and the facts they state, questions and answers.

Captions have writers. A writer is careful to some degree (how often a stated thing is as stated) and complete to some
degree (how many of the things are mentioned), from not at all to always, more often the latter. Neither the scorer nor
any training stage is told; the true quality of a caption, by which the report judges both, is the F1 of its facts.
"""

import random
import re
from typing import NamedTuple

from world import COLOURS, PLACES, SHAPES, SIGN, WORDS, Scene, Thing, position, random_kind


NUMBERS = ("zero", "one", "two", "three", "four", "five")
RELATIONS = ("left of", "above")
FACT = re.compile(
    rf"(?:a ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})|a ({SIGN}) saying ({'|'.join(WORDS)}))"
    rf"(?: at the ({'|'.join(sorted(PLACES, key=len, reverse=True))}))?"
)
RELATED = re.compile(rf"({FACT.pattern}) ({'|'.join(RELATIONS)}) ({FACT.pattern})")

# Tasks that need the whole picture, and tasks that need one region of it
WHOLE_IMAGE_TASKS = ("describe", "count", "compare", "relation")
ONE_REGION_TASKS = ("colour", "shape", "presence", "read")
TASKS = (*WHOLE_IMAGE_TASKS, *ONE_REGION_TASKS)


class Writer(NamedTuple):
    """Someone who writes captions."""

    care: float  # probability that a stated thing is as stated
    completeness: float  # probability that a thing is mentioned


class Question(NamedTuple):
    """A question of one of `TASKS` and its answer."""

    task: str
    question: str
    answer: str


def random_writer(rng: random.Random) -> Writer:
    care, completeness = (max(rng.random(), rng.random()) for _ in range(2))
    return Writer(care, completeness)


def name(thing: Thing, place: bool = False) -> str:
    """ "a red circle", "a sign saying go"; with its place if `place`."""
    kind = f"a sign saying {thing.look}" if thing.shape == SIGN else f"a {thing.look} {thing.shape}"
    return f"{kind} at the {thing.place}" if place else kind


def join(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def relate(first: Thing, second: Thing) -> str | None:
    """The first of `RELATIONS` in which `first` stands to `second`, or None."""
    (row, column), (other_row, other_column) = position(first.place), position(second.place)
    return RELATIONS[0] if column < other_column else RELATIONS[1] if row < other_row else None


def caption(scene: Scene, writer: Writer, rng: random.Random) -> str:
    """What a writer says of a scene: a list of things, with or without their places, or how two of them stand."""
    mentioned = [thing for thing in scene.things if rng.random() < writer.completeness]
    mentioned = mentioned or [rng.choice(scene.things)]
    stated = [thing if rng.random() < writer.care else _mistake(thing, scene, rng) for thing in mentioned]
    if len(stated) == 2 and (relation := relate(*stated)):
        return f"{name(stated[0])} {relation} {name(stated[1])}"
    places = rng.random() < 0.5
    return join([name(thing, places) for thing in stated])


def _mistake(thing: Thing, scene: Scene, rng: random.Random) -> Thing:
    while True:
        other = random_kind(rng, rng.choice(PLACES), is_sign=thing.shape == SIGN)
        if other.kind not in scene.kinds:
            return other


def facts(text: str) -> list[tuple[str, ...]]:
    """
    The facts a text states, each once: (look, shape) for each thing, (look, shape, place) where a place is stated, and
    (look, shape, relation, look, shape). Anything else in it is ignored.
    """
    found = []
    for match in FACT.finditer(text):
        found.append(_kind(match.groups()))
        if match[5]:
            found.append((*_kind(match.groups()), match[5]))
    for match in RELATED.finditer(text):
        groups = match.groups()
        found.append((*_kind(groups[1:5]), groups[6], *_kind(groups[8:12])))
    return list(dict.fromkeys(found))


def _kind(groups: tuple[str | None, ...]) -> tuple[str, str]:
    colour, shape, sign, word = groups[:4]
    return (word, sign) if sign else (colour, shape)


def is_true(fact: tuple[str, ...], scene: Scene) -> bool:
    """Whether a fact of `facts` holds in a scene."""
    if len(fact) < 4:
        return any(fact in (thing.kind, tuple(thing)) for thing in scene.things)
    things = {thing.kind: thing for thing in scene.things}
    first, second = things.get(fact[:2]), things.get(fact[3:])
    if first is None or second is None:
        return False
    axis = 1 if fact[2] == RELATIONS[0] else 0
    return position(first.place)[axis] < position(second.place)[axis]


def f1(text: str, scene: Scene) -> float:
    """Of the facts that a text states: precision, and recall of the things of the scene."""
    stated = facts(text)
    if not stated:
        return 0.0
    precision = sum(is_true(fact, scene) for fact in stated) / len(stated)
    recall = len({fact[:2] for fact in stated} & set(scene.kinds)) / len(scene.things)
    return 2 * precision * recall / (precision + recall) if precision else 0.0


def ask(scene: Scene, task: str, rng: random.Random, about: tuple[Thing, ...] = ()) -> Question | None:
    """A question of a task, about one of the things in `about` where it can be; None if the scene allows none."""
    shapes = [thing for thing in scene.things if thing.shape != SIGN]
    thing = _choose(shapes, about, rng)
    if task == "describe":
        return Question(task, "describe the picture.", join([name(t, place=True) for t in scene.things]))
    if task == "count":
        return Question(task, "how many things are there?", NUMBERS[len(scene.things)])
    if task == "read":
        words = [t.look for t in scene.things if t.shape == SIGN]
        return Question(task, "what does the sign say?", words[0]) if words else None
    if task == "compare":
        numbers = {shape: sum(t.shape == shape for t in shapes) for shape in SHAPES}
        pairs = [(a, b) for a in SHAPES for b in SHAPES if numbers[a] > numbers[b]]
        hard = [pair for pair in pairs if numbers[pair[1]]]  # both are there
        if not pairs:
            return None
        more, fewer = rng.choice(hard or pairs)
        first, second = rng.sample((more, fewer), 2)
        return Question(task, f"which are more, {first} or {second}?", more)
    if thing is None:
        return None
    if task == "relation":
        others = [other for other in shapes if other != thing]
        if not others:
            return None
        other, relation = rng.choice(others), rng.choice(RELATIONS)
        answers = {is_true((*a.kind, relation, *b.kind), scene): (a, b) for a, b in ((thing, other), (other, thing))}
        holds = rng.choice(list(answers))  # "yes" as often as "no", where both can be asked
        first, second = answers[holds]
        text = f"is the {first.look} {first.shape} {relation} the {second.look} {second.shape}?"
        return Question(task, text, "yes" if holds else "no")
    if task == "presence":
        if rng.random() < 0.5:
            return Question(task, f"is there a {thing.look} {thing.shape}?", "yes")
        # One word differs, so that neither the colour nor the shape alone tells
        near = [(c, s) for c in COLOURS for s in SHAPES if (c == thing.look) != (s == thing.shape)]
        look, shape = rng.choice([kind for kind in near if kind not in scene.kinds])
        return Question(task, f"is there a {look} {shape}?", "no")
    text = f"what {task} is at the {thing.place}?"
    return Question(task, text, thing.look if task == "colour" else thing.shape)


def _choose(things: list[Thing], about: tuple[Thing, ...], rng: random.Random) -> Thing | None:
    preferred = [thing for thing in things if thing in about] or things
    return rng.choice(preferred) if preferred else None
