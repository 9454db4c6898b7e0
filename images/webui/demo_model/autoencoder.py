"""The first stage: an autoencoder for the clips' pictures, trained on its own.

Its latents are not learned but set: the picture in a quarter of its size, two by two pixels to a latent. So the second
stage does not depend on how good this one is, and either can be trained further without the other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from demo_model.clips import FRAMES, SCENES, draw
from demo_model.model import FACTOR
from demo_model.state import read, write

BATCH = 16
UNSURE = 0.15  # noise on the latents, at most: what the second stage gets wrong must not show much
EDGE = 4.0
RATE = 3e-3


def thumbnails(shown: torch.Tensor) -> torch.Tensor:
    """(count, 3, h, w) pictures to their latents (count, 12, h / 8, w / 8); three of them are a red, green and blue."""
    small = functional.avg_pool2d(shown, FACTOR // 2)
    return torch.cat([small[:, :, y::2, x::2] for y in (0, 1) for x in (0, 1)], dim=1)


def enlarged(latents: torch.Tensor) -> torch.Tensor:
    """About the pictures that the latents mean, blurred as they are."""
    count, _, height, width = latents.shape
    parts = latents.view(count, 2, 2, 3, height, width).permute(0, 3, 4, 1, 5, 2)
    return functional.interpolate(parts.reshape(count, 3, 2 * height, 2 * width), scale_factor=FACTOR // 2)


def pictures(count: int, chance: random.Random, noise: torch.Generator, device: str) -> torch.Tensor:
    """(count, 3, SIZE, SIZE), each of another clip."""
    frame = torch.randint(FRAMES, (1,), generator=noise).float().to(device)
    return draw(chance.choices(SCENES, k=count), frame, noise)[:, 0]


class Teacher:
    """Trains the autoencoder on; `total` steps decide how fast the learning rate falls."""

    def __init__(self, vae: Any, total: int, seed: int, device: str) -> None:
        self.step, self.total = 0, total
        self._vae = vae
        self._device = device
        self._chance = random.Random(seed)  # noqa: S311
        self._noise = torch.Generator().manual_seed(seed)
        self._optimizer = torch.optim.AdamW(vae.parameters(), lr=RATE, weight_decay=0.0)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimizer, RATE, total_steps=total, pct_start=0.05)

    def train_step(self, told: Callable[[str], None]) -> None:
        picture, latent = self._step()
        self.step += 1
        if self.step % 50 == 0 or self.step == self.total:
            told(f"autoencoder {self.step}/{self.total} picture {picture:.4f} latents {latent:.4f}")

    def save(self, path: Path) -> None:
        state = {name: part.state_dict() for name, part in self._parts().items()}
        write(state | {"step": self.step, "chance": self._chance.getstate(), "noise": self._noise.get_state()}, path)

    def load(self, path: Path) -> None:
        """Raises OSError, or RuntimeError for another model's state."""
        state = read(path)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.step = state["step"]
        self._chance.setstate(state["chance"])
        self._noise.set_state(state["noise"])

    def _parts(self) -> dict[str, Any]:
        return {"vae": self._vae, "optimizer": self._optimizer, "schedule": self._schedule}

    def _step(self) -> tuple[float, float]:
        shown = pictures(BATCH, self._chance, self._noise, self._device)
        latents = thumbnails(shown)
        # From nothing to UNSURE, another share for each picture.
        share = UNSURE * torch.rand(len(shown), 1, 1, 1, generator=self._noise)
        unsure = (share * torch.randn(latents.shape, generator=self._noise)).to(self._device)
        away = self._vae.decode(latents + unsure).sample - shown
        picture = (_weights(shown) * (away.abs() + away.square())).mean()
        latent = functional.mse_loss(self._vae.encode(shown).latent_dist.mode(), latents)
        self._optimizer.zero_grad()
        (picture + latent).backward()
        torch.nn.utils.clip_grad_norm_(self._vae.parameters(), 1.0)
        self._optimizer.step()
        self._schedule.step()
        return picture.item(), latent.item()


def _weights(shown: torch.Tensor) -> torch.Tensor:
    """(count, 1, h, w): most for what lies at an edge, which is little of a picture and all of a shape."""
    smooth = functional.avg_pool2d(shown, 5, stride=1, padding=2, count_include_pad=False)
    return 1 + EDGE * (shown - smooth).abs().amax(1, keepdim=True)


def made_again(vae: Any, clips: torch.Tensor) -> Iterator[torch.Tensor]:
    """Clips (count, frames, 3, h, w) after encoding and decoding, one after the other."""
    for clip in clips:
        with torch.no_grad():
            made = vae.decode(vae.encode(clip).latent_dist.mode()).sample
        yield made
