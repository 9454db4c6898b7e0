"""Whether clips show what their prompts say: judged by colours and by where the shape goes, by no model."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from demo_model.autoencoder import enlarged
from demo_model.clips import BACKGROUNDS, COLOURS, FRAMES, SCENES, SHAPES, SIZE, TEMPLATES, Scene
from demo_model.model import FACTOR, LATENTS, NOISE, Parts, embed
from webui.engine.diffusers import DiffusersEngine, Quiet
from webui.engine.guidance import Guidance
from webui.engine.samplers import Noise, make_scheduler
from webui.request import MemorySettings, VideoRequest
from webui.sampler_names import choose
from webui.settings import EngineSettings

NEEDED = {"colour": 0.9, "background": 0.9, "direction": 0.8}
PROMPTS, SEEDS, SEED = 64, 2, 20240607
PALETTE = COLOURS | BACKGROUNDS
FOREIGN = 100.0  # how far, of 441, a pixel's colour is from the background's where it belongs to the shape
FEWEST = 0.01  # of all pixels
FILLED = {"circle": 0.785, "square": 1.0, "triangle": 0.5}  # how much of its box a shape covers
SCALE, STEPS = 7.5, 20  # what a request gets that does not say otherwise

Case = tuple[Scene, str, int]
"""What is to be seen, the prompt, the seed."""


@dataclass(frozen=True)
class Seen:
    """What a clip shows; empty where that cannot be told."""

    colour: str = ""
    background: str = ""
    direction: str = ""
    shape: str = ""


def cases(prompts: int = PROMPTS, seeds: int = SEEDS) -> list[Case]:
    """Always the same ones, with every colour, background and direction about equally often."""
    chance = random.Random(SEED)  # noqa: S311
    scenes = chance.sample(SCENES, prompts)
    return [(scene, scene.prompt(chance.choice(TEMPLATES)), seed) for scene in scenes for seed in range(seeds)]


def look(clip: torch.Tensor) -> Seen:
    """`clip` is (frames, 3, height, width), 0 to 255."""
    pixels = clip.float().permute(0, 2, 3, 1)
    palette = torch.tensor(list(PALETTE.values()), dtype=torch.float32, device=clip.device)
    names = list(PALETTE)
    distance = torch.cdist(pixels.flatten(0, 2), palette)
    nearest = distance.argmin(1)
    ground = int(nearest.bincount(minlength=len(names)).argmax())
    inside = (distance[:, ground] > FOREIGN) & (nearest != ground)
    if inside.float().mean() < FEWEST:
        return Seen(background=names[ground])
    colour = int(nearest[inside].bincount(minlength=len(names)).argmax())
    mask = inside.view(pixels.shape[:3]).float()
    return Seen(names[colour], names[ground], _direction(mask), _shape(mask))


def _direction(mask: torch.Tensor) -> str:
    """Where the middle of the shape goes, by the frames in which most of it can be seen."""
    area = mask.sum((1, 2))
    axis = torch.arange(mask.shape[1], device=mask.device) + 0.5
    across = torch.arange(mask.shape[2], device=mask.device) + 0.5
    middle = torch.stack([(mask.sum(1) * across).sum(1), (mask.sum(2) * axis).sum(1)], 1) / area.clamp(min=1)[:, None]
    clear = area >= 0.6 * area.max()
    shift = middle[1:] - middle[:-1]
    # A shape that has left comes back at the other side: no movement that one sees.
    known = clear[1:] & clear[:-1] & (shift.abs().amax(1) < mask.shape[2] / 4)
    if known.sum() < 3:
        return ""
    x, y = shift[known].mean(0).tolist()
    if max(abs(x), abs(y)) < 1.0 or min(abs(x), abs(y)) > 0.5 * max(abs(x), abs(y)):
        return ""
    if abs(x) > abs(y):
        return "left" if x < 0 else "right"
    return "up" if y < 0 else "down"


def _shape(mask: torch.Tensor) -> str:
    """By the frames with the largest area, how much of its box the shape covers."""
    votes = Counter(_fill(mask[index]) for index in mask.sum((1, 2)).topk(min(3, len(mask))).indices)
    return votes.most_common(1)[0][0]


def _fill(mask: torch.Tensor) -> str:
    rows, columns = mask.sum(1).nonzero(), mask.sum(0).nonzero()
    box = float((rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1))
    share = float(mask.sum()) / box
    return min(SHAPES, key=lambda name: abs(FILLED[name] - share))


@dataclass(frozen=True)
class Result:
    """How many of how many clips show each thing as asked for."""

    clips: int
    right: dict[str, int]

    @property
    def passed(self) -> bool:
        return all(self.right[name] >= share * self.clips for name, share in NEEDED.items())

    def table(self) -> str:
        """A line for each; shapes are counted, but decide nothing."""
        lines = []
        for name, count in self.right.items():
            need = f"{NEEDED[name]:5.0%}" if name in NEEDED else "    -"
            lines.append(f"{name:12}{count:4d} of {self.clips:4d}  {count / self.clips:6.1%}  needed {need}")
        return "\n".join(lines)

    def short(self) -> str:
        return " ".join(f"{name} {count}/{self.clips}" for name, count in self.right.items())


def judge(clips: Iterable[tuple[Scene, torch.Tensor]]) -> Result:
    """`clips` are scenes that were asked for, with what came of them, as `look` takes it."""
    right = dict.fromkeys((*NEEDED, "shape"), 0)
    count = 0
    for scene, clip in clips:
        count += 1
        seen = look(clip)
        for name in right:
            right[name] += getattr(seen, name) == getattr(scene, name)
    return Result(count, right)


def sample(parts: Parts, asked: list[Case], steps: int, scale: float = SCALE) -> torch.Tensor:
    """(clips, FRAMES, 3, SIZE, SIZE) bytes: all at once, in the engine's way, but enlarged without the autoencoder."""
    scheduler = make_scheduler(choose(None, None), Noise(**NOISE))  # type: ignore[arg-type]
    device, side = parts.unet.device, SIZE // FACTOR
    scheduler.set_timesteps(steps, device=device)
    shape = (1, LATENTS, FRAMES, side, side)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for _, _, seed in asked]
    latents = torch.cat(noise).to(device)
    pipeline, guidance = SimpleNamespace(unet=parts.unet, scheduler=scheduler), Guidance(scale)
    texts = [""] * len(asked) * guidance.is_on + [prompt for _, prompt, _ in asked]
    with torch.no_grad():
        states = embed(parts, texts).repeat_interleave(FRAMES, 0)
        for timestep in scheduler.timesteps:
            made = guidance.predict(pipeline, latents, timestep, states)
            latents = scheduler.step(made, timestep, latents).prev_sample
    return torch.stack([to_bytes(enlarged(clip.transpose(0, 1))) for clip in latents])


def to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """From -1..1 to 0..255."""
    return ((pixels + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)


def generated(models: Path, scratch: Path, asked: list[Case], device: str, threads: int) -> Iterator[Any]:
    """By the engine itself from exported models; (scene, clip) as `judge` takes them."""
    settings = EngineSettings(
        kind="diffusers",
        device=device,
        checkpoint="tiny",
        motion_module="tiny",
        threads=threads,
        models_dir=str(models),
        scratch_dir=str(scratch),
    )
    engine = DiffusersEngine(settings)
    engine.load()
    for scene, prompt, seed in asked:
        request = VideoRequest(prompt, width=SIZE, height=SIZE, frames=FRAMES, steps=STEPS, cfg_scale=SCALE, seed=seed)
        clip = engine.generate(request, Quiet(), MemorySettings())
        yield scene, torch.from_numpy(clip.frames).permute(0, 3, 1, 2)
