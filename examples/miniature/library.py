"""
What the miniature's language model has read before it sees a picture: notes on scenes ("top-left-red
top-left-circle ..."), what writers made of such notes, and chats about them.

A caption follows the name of its writer. Of twelve writers some are careful and some are not, some tell all and some
little; no word says how well a caption fits, and nothing in the corpus knows of alignment levels. That is what stage 1
has to find: for the patches of a picture the place of notes, for each level the place of a name.
"""

import random

from data import SYSTEM, conversation
from language import Writer, caption
from tiny.llama import Piece, chat_pieces
from world import Scene, random_scene


NAMES = ("ada", "ben", "cleo", "dan", "eve", "finn", "gus", "hana", "ivo", "jil", "kai", "lea")
CAPTION_SHARE = 0.3  # of the texts of the second lesson; the others are chats
CHAT_TURNS = 8
CHAT_WEIGHTS = (0.3, 0.5, 1, 4, 4, 4, 4, 0.5)  # of the tasks: looking something up is the hardest to learn
LOOKING_UP = (0, 0, 0, 1, 4, 4, 4, 0)  # and is learnt faster before anything else is


def writers() -> dict[str, Writer]:
    """Four degrees of care, each with three of completeness, given to the names at random."""
    names = random.Random(0).sample(NAMES, len(NAMES))
    return {name: Writer((i % 4) / 3, (i // 4 + 0.5) / 3) for i, name in enumerate(names)}


WRITERS = writers()


def notes(scene: Scene) -> list[Piece]:
    """A thing at a position, all its words at once, in capitals: not the words that are said about it."""
    return [(tuple(word.upper() for word in (thing.place, *thing.kind)), False) for thing in scene.things]


def look_up(rng: random.Random) -> list[Piece]:
    """A text of the first lesson."""
    scene = random_scene(rng, split=None)
    return chat_pieces(SYSTEM, notes(scene), conversation(scene, CHAT_TURNS, rng, LOOKING_UP))


def read_all(rng: random.Random) -> list[Piece]:
    """A text of the second lesson: a caption by a writer, or a chat about everything."""
    scene = random_scene(rng, split=None)
    if rng.random() < CAPTION_SHARE:
        name = rng.choice(NAMES)
        return [(name, False), *notes(scene), (caption(scene, WRITERS[name], rng) + "\n", True)]
    return chat_pieces(SYSTEM, notes(scene), conversation(scene, CHAT_TURNS, rng, CHAT_WEIGHTS))
