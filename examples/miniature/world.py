"""
The miniature's world: one to five things on a 3x3 grid, drawn at 48x48 pixels. A thing is a coloured shape or a sign
with a printed word.

Scenes are split by *combination*: every triple (colour, shape, place), and every (word, place), belongs to one split.
A training scene is made of training triples alone; a validation or test scene has at least one of its own split, and
otherwise training ones. So no model has seen such a thing at such a place, though each word of it; the language model
alone has read of all combinations, and a wrong caption may name any. Everything is deterministic: the same
`random.Random` state gives the same scene and the same pixels.
"""

import random
from dataclasses import dataclass
from typing import Literal, NamedTuple

from PIL import Image, ImageDraw, ImageFont


GRID = 3
CELL = 16  # pixels: a patch of the tiny CLIP
IMAGE_SIZE = GRID * CELL
MAX_THINGS = 5
COLOURS = {
    "red": (225, 40, 40),
    "green": (40, 185, 60),
    "blue": (50, 80, 235),
    "yellow": (240, 220, 40),
    "purple": (165, 50, 205),
    "cyan": (60, 220, 225),
}
SHAPES = ("circle", "square", "triangle", "cross")
WORDS = ("go", "up", "no", "in", "we", "at", "hi", "by")
PLACES = (  # reading order
    *("top-left", "top", "top-right"),
    *("left", "centre", "right"),
    *("bottom-left", "bottom", "bottom-right"),
)
SIGN = "sign"
SIGN_SHARE = 0.5  # of the scenes have one

Split = Literal["train", "validation", "test"]


class Thing(NamedTuple):
    """A coloured shape, or a sign: then `shape` is "sign" and `look` the word on it."""

    look: str  # a colour or a word
    shape: str
    place: str

    @property
    def kind(self) -> tuple[str, str]:
        """What it is, wherever it is."""
        return self.look, self.shape

    @property
    def split(self) -> Split:
        """The split that this combination belongs to: a third of them is held out, half each."""
        looks = WORDS if self.shape == SIGN else tuple(COLOURS)
        shape = 0 if self.shape == SIGN else SHAPES.index(self.shape)
        number = (looks.index(self.look) + 2 * shape + 5 * PLACES.index(self.place) // 3) % 6
        return {0: "test", 3: "validation"}.get(number, "train")


@dataclass(frozen=True)
class Scene:
    """One to five things, at most one per place, in reading order."""

    things: tuple[Thing, ...]

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return [thing.kind for thing in self.things]

    @property
    def held_out(self) -> tuple[Thing, ...]:
        """The things whose combination occurs in no training scene."""
        return tuple(thing for thing in self.things if thing.split != "train")


def random_scene(rng: random.Random, split: Split | None = "train") -> Scene:
    """A scene of a split, or of any combinations; no kind of thing is there twice: "the red circle" names one."""
    while True:
        places = rng.sample(PLACES, rng.randint(1, MAX_THINGS))
        sign_place = rng.choice(places) if rng.random() < SIGN_SHARE else None
        held_out_place = rng.choice(places) if split in ("validation", "test") else None
        things = [
            _random_thing(rng, p, p == sign_place, split if p == held_out_place else split and "train") for p in places
        ]
        scene = Scene(tuple(sorted(things, key=lambda thing: PLACES.index(thing.place))))
        if len(set(scene.kinds)) == len(things):
            return scene


def _random_thing(rng: random.Random, place: str, is_sign: bool, split: Split | None) -> Thing:
    while True:
        thing = random_kind(rng, place, is_sign)
        if split in (None, thing.split):
            return thing


def random_kind(rng: random.Random, place: str, is_sign: bool) -> Thing:
    """Any sign or shape at a place, of whatever split."""
    return Thing(rng.choice(WORDS if is_sign else list(COLOURS)), SIGN if is_sign else rng.choice(SHAPES), place)


def position(place: str) -> tuple[int, int]:
    """Row and column of a place."""
    return divmod(PLACES.index(place), GRID)


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """Draws a scene; position, size, hue and background vary from picture to picture."""
    scale = 4  # drawn four times larger and reduced: smooth edges
    cell = CELL * scale
    grey = rng.randint(0, 60)
    image = Image.new("RGB", (GRID * cell, GRID * cell), (grey, grey, grey))
    draw = ImageDraw.Draw(image)
    for thing in scene.things:
        row, column = position(thing.place)
        x, y = (cell * (index + 0.5 + rng.uniform(-0.06, 0.06)) for index in (column, row))
        if thing.shape == SIGN:
            _draw_sign(draw, thing.look, x, y, cell * rng.uniform(0.42, 0.46))
        else:
            colour = tuple(max(0, min(255, channel + rng.randint(-25, 25))) for channel in COLOURS[thing.look])
            _draw_shape(draw, thing.shape, x, y, cell * rng.uniform(0.28, 0.42), colour)
    return image.reduce(scale)


def _draw_sign(draw: ImageDraw.ImageDraw, word: str, x: float, y: float, r: float) -> None:
    draw.rectangle((x - r, y - 0.75 * r, x + r, y + 0.75 * r), fill=(235, 235, 235))
    draw.text((x, y), word, fill=(10, 10, 10), anchor="mm", font=ImageFont.load_default(1.5 * r))


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, colour: tuple[int, ...]) -> None:
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif shape == "square":
        draw.rectangle((x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + 0.9 * r), fill=colour)
    elif shape == "triangle":
        draw.polygon(((x, y - r), (x + r, y + r), (x - r, y + r)), fill=colour)
    else:
        draw.rectangle((x - r, y - 0.3 * r, x + r, y + 0.3 * r), fill=colour)
        draw.rectangle((x - 0.3 * r, y - r, x + 0.3 * r, y + r), fill=colour)
