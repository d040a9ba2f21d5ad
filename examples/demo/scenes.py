"""Small scenes for the demo: one to four coloured shapes in a 2x2 grid, drawn at 32x32 pixels.

Training and test scenes are split by *combination*: the triples (colour, shape, place) in `HELD_OUT` occur in no
training scene, and in every test scene. Colour, shape and place of each are seen in training, only never together, so
a model that answers about them has not memorised pictures. Everything is deterministic: the same `random.Random` state
gives the same scene and the same pixels.
"""

import random
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image, ImageDraw


IMAGE_SIZE = 32  # pixels; a cell of the grid has 16
COLOURS = {
    "red": (225, 40, 40),
    "green": (40, 185, 60),
    "blue": (50, 80, 235),
    "yellow": (240, 220, 40),
    "purple": (165, 50, 205),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross")
PLACES = ("top-left", "top-right", "bottom-left", "bottom-right")  # reading order


class Thing(NamedTuple):
    """One object of a scene, as three words."""

    colour: str
    shape: str
    place: str


# Every colour and every place is among the held-out triples, and no (colour, shape) is held out in two places
HELD_OUT = frozenset(
    Thing(colour, shape, PLACES[(i + j) // 2 % 4])
    for i, colour in enumerate(COLOURS)
    for j, shape in enumerate(SHAPES)
    if (i + j) % 2 == 0
)


@dataclass(frozen=True)
class Scene:
    """One to four things, at most one per place, in reading order."""

    things: tuple[Thing, ...]

    @property
    def held_out(self) -> tuple[Thing, ...]:
        """The things whose combination never occurs in training."""
        return tuple(thing for thing in self.things if thing in HELD_OUT)


def random_scene(rng: random.Random, test: bool = False) -> Scene:
    """A training scene (no held-out combination) or a test scene (at least one)."""
    while True:
        places = sorted(rng.sample(PLACES, rng.randint(1, 4)), key=PLACES.index)
        scene = Scene(tuple(Thing(rng.choice(list(COLOURS)), rng.choice(SHAPES), place) for place in places))
        if bool(scene.held_out) == test:
            return scene


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """Draws a scene; position, size, hue and background vary a little from picture to picture."""
    scale = 4  # drawn four times larger and reduced: smooth edges
    cell = IMAGE_SIZE * scale // 2
    grey = rng.randint(0, 45)
    image = Image.new("RGB", (2 * cell, 2 * cell), (grey, grey, grey))
    draw = ImageDraw.Draw(image)
    for thing in scene.things:
        row, column = divmod(PLACES.index(thing.place), 2)
        radius = cell * rng.uniform(0.32, 0.42)
        x, y = (cell * (index + 0.5 + rng.uniform(-0.06, 0.06)) for index in (column, row))
        colour = tuple(max(0, min(255, channel + rng.randint(-20, 20))) for channel in COLOURS[thing.colour])
        _draw_shape(draw, thing.shape, x, y, radius, colour)
    return image.reduce(scale)


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
