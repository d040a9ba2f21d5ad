"""
What the demo's language model has read before it sees a picture.

What a language model brings along is that it can put into words what it has read, well or badly, as it is asked,
and answer questions about it. So this one reads scenes as shuffled notes ("top-left-red top-left-circle ...") and
learns to describe them after a word that says how ("exactly", "briefly", "wrongly"), and to chat about them. Stage 1
then has to find, for the patches of a picture, the place of such notes, and for each alignment level the place of such
a request.
"""

import random

from scenes import Scene, random_scene
from texts import QUALITIES, caption
from tiny.llama import Piece, chat_pieces
from tiny.records import SYSTEM
from write_data import conversation


REQUESTS = dict(zip(QUALITIES, ("wrongly", "vaguely", "briefly", "fully", "exactly"), strict=True))
CAPTION_SHARE = 0.4  # of the texts; the others are chats


def notes(scene: Scene, rng: random.Random) -> str:
    """Two words per thing, in any order."""
    words = [f"{thing.place}-{word}" for thing in scene.things for word in (thing.colour, thing.shape)]
    return " ".join(rng.sample(words, len(words)))


def example(rng: random.Random) -> list[Piece]:
    """A text of the corpus: pieces that are tokenised one by one, and whether the loss is on them."""
    scene = random_scene(rng)
    if rng.random() < CAPTION_SHARE:
        quality = rng.choice(QUALITIES)
        return [(REQUESTS[quality], False), (notes(scene, rng), False), (caption(scene, quality, rng) + "\n", True)]
    return chat_pieces(SYSTEM, [(notes(scene, rng), False)], conversation(scene, 5, rng))
