"""The world that the demo model knows: one coloured shape that moves over a plain background, and words for it.

The shape crosses the picture at a constant speed, leaves it and comes back at the other side, so that 16 frames are a
loop. It is never out of sight for a whole frame.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

SIZE = 64  # pixels
FRAMES = 16  # of one loop
SPEED = 4.5  # pixels a frame
PERIOD = FRAMES * SPEED
MARGIN = (PERIOD - SIZE) / 2
RADIUS = (12.0, 14.5)
START = 22.0  # pixels before the middle of the picture, against the direction
JITTER = 6.0  # pixels, along the way and across it

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 180, 50),
    "blue": (30, 60, 220),
    "yellow": (245, 220, 40),
    "purple": (150, 40, 180),
    "white": (245, 245, 245),
}
BACKGROUNDS = {name: COLOURS[name] for name in ("blue", "green", "white")} | {"black": (15, 15, 15)}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
TEMPLATES = (
    "a {colour} {shape} moves {direction} on a {background} background",
    "a {colour} {shape} moving {direction} on a {background} background",
    "{colour} {shape} moves {direction}, {background} background",
)
FILLERS = ("best quality", "high quality", "masterpiece", "smooth")
NEGATIVES = ("", "", "low quality", "blurry, low quality", "worst quality, blurry, watermark, text")


@dataclass(frozen=True)
class Scene:
    """What one clip shows, and all that its prompt says."""

    colour: str
    shape: str
    background: str
    direction: str

    def prompt(self, template: str = TEMPLATES[0]) -> str:
        return template.format(**vars(self))


SCENES = tuple(
    Scene(colour, shape, background, direction)
    for colour in COLOURS
    for shape in SHAPES
    for background in BACKGROUNDS
    for direction in DIRECTIONS
    if colour != background
)


def corpus() -> list[str]:
    """Every text that training may show."""
    return [scene.prompt(template) for scene in SCENES for template in TEMPLATES] + [*FILLERS, *NEGATIVES]


def spoken(scene: Scene, chance: random.Random) -> str:
    """One of the ways to say it."""
    text = scene.prompt(chance.choice(TEMPLATES))
    return f"{text}, {chance.choice(FILLERS)}" if chance.random() < 0.15 else text


def draw(scenes: list[Scene], frames: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    """(clips, frames, 3, SIZE, SIZE) from -1 to 1, on the device of `frames`, which are their numbers (count,).

    `chance` is the CPU's: where exactly the shape starts, and how large it is.
    """
    device = frames.device
    loose = torch.rand(3, len(scenes), 1, generator=chance).to(device)
    radius = RADIUS[0] + (RADIUS[1] - RADIUS[0]) * loose[0]
    along, across = (2 * loose[1] - 1) * JITTER, (2 * loose[2] - 1) * JITTER
    way = torch.tensor([DIRECTIONS[scene.direction] for scene in scenes], device=device)[:, None]
    travelled = frames[None] * SPEED - START + along
    # From -MARGIN to SIZE + MARGIN, which are the same place.
    place = (SIZE / 2 + way * travelled[..., None] + MARGIN).remainder(PERIOD) - MARGIN
    crossing = (SIZE / 2 + across).expand(-1, len(frames))[..., None]
    centre = torch.where(way != 0, place, crossing)
    inside = _inside(scenes, centre, radius)
    ink, ground = _colours([COLOURS[s.colour] for s in scenes]), _colours([BACKGROUNDS[s.background] for s in scenes])
    return inside * ink.to(device) + (1 - inside) * ground.to(device)


def _colours(values: list[tuple[int, int, int]]) -> torch.Tensor:
    return (torch.tensor(values, dtype=torch.float32) / 127.5 - 1)[:, None, :, None, None]


def _inside(scenes: list[Scene], centre: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """(clips, frames, 1, SIZE, SIZE): how much of each pixel the shape covers."""
    axis = torch.arange(SIZE, device=centre.device) + 0.5
    x = (axis[None, None, None] - centre[:, :, :1, None])[:, :, None]
    y = (axis[None, None, :, None] - centre[:, :, 1:, None])[:, :, None]
    size = radius[:, :, None, None, None]
    shapes = torch.tensor([SHAPES.index(scene.shape) for scene in scenes], device=centre.device)
    shapes = shapes.view(-1, 1, 1, 1, 1)
    circle = (x.square() + y.square()).sqrt() - size
    square = torch.maximum(x.abs(), y.abs()) - 0.9 * size
    triangle = torch.maximum(y - 0.9 * size, 0.88 * x.abs() - 0.47 * (y + 1.1 * size))
    distance = torch.where(shapes == 0, circle, torch.where(shapes == 1, square, triangle))
    return (0.5 - distance).clamp(0, 1)
