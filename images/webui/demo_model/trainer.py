"""The second stage: images, motion and text together, step by step, with a state that can be taken up again."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from demo_model.autoencoder import thumbnails
from demo_model.clips import FRAMES, NEGATIVES, SCENES, draw, spoken
from demo_model.model import LONGEST, NOISE, Parts, embed, place_frames
from demo_model.state import read, write
from webui.engine.samplers import TRAIN_STEPS

PICTURES = 64  # of one step: many clips of few frames, or few clips of many
RATE, WARM_UP, LAST_RATE = 5e-4, 100, 0.02
EMA = 0.999
UNTOLD = 0.1  # of all clips are shown without their prompt
EARLY = 0.25  # the power of a draw from 0 to 1: most clips are so noisy that the prompt alone tells what they show
MUCH = 900  # time steps and more: nothing can be seen any more
LONG = 0.15  # of all steps of the second half show clips of up to LONGEST frames


class Losses:
    """Means since they were last told.

    `prompt` is what the prompt alone should tell, in pure noise. It says what the model has understood: who knows but
    the background is at 0.106, with the colour at 0.085, with direction and frame instead at 0.078, with all at 0.04.
    """

    def __init__(self) -> None:
        self._prompt: list[torch.Tensor] = []
        self._rest: list[torch.Tensor] = []

    def add(self, each: torch.Tensor, much: torch.Tensor, told: torch.Tensor) -> None:
        """`each` clip's loss, whether it is pure noise, and whether it has its prompt."""
        self._prompt.append(each[much & told])
        self._rest.append(each[~much])

    def __str__(self) -> str:
        return f"prompt {_mean(self._prompt):.4f} rest {_mean(self._rest):.4f}"


class Trainer:
    """`total` steps decide how fast the learning rate falls. The autoencoder has no part in it: its latents
    are known without it."""

    def __init__(self, parts: Parts, total: int, seed: int, device: str) -> None:
        self.step = 0
        self.losses = Losses()
        self.chance = random.Random(seed)  # noqa: S311
        self.noise = torch.Generator().manual_seed(seed)
        self._parts = parts
        self._total = total
        self._device = device
        self._weights = [*parts.unet.parameters(), *parts.text_encoder.parameters()]
        self._mean = [weight.detach().clone() for weight in self._weights]
        self._optimizer = torch.optim.AdamW(self._weights, lr=RATE, betas=(0.9, 0.99), weight_decay=0.01)
        betas = torch.linspace(NOISE["beta_start"], NOISE["beta_end"], TRAIN_STEPS)
        self._signal = (1 - betas).cumprod(0).to(device)

    def train_step(self) -> None:
        frames = self._frames()
        count = PICTURES // len(frames)
        scenes = self.chance.choices(SCENES, k=count)
        texts = [spoken(scene, self.chance) for scene in scenes]
        told = torch.tensor([self.chance.random() > UNTOLD for _ in texts])
        texts = [text if known else self.chance.choice(NEGATIVES) for text, known in zip(texts, told, strict=True)]
        clips = draw(scenes, frames.float().to(self._device), self.noise)
        loss, each, level = self._loss(clips, texts, frames)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = RATE * rate(self.step, self._total)
        self._optimizer.step()
        self.step += 1
        torch._foreach_lerp_(self._mean, [weight.detach() for weight in self._weights], 1 - self._memory())
        self.losses.add(each.cpu(), (level >= MUCH).cpu(), told)

    @property
    def _late(self) -> bool:
        """First what a prompt means, then how it looks."""
        return self.step > 0.6 * self._total

    def _frames(self) -> torch.Tensor:
        """The numbers of the frames that this step looks at: first some of them, in the end all of a clip."""
        longest = LONGEST if self.step > self._total / 2 and self.chance.random() < LONG else FRAMES
        size = self.chance.choices((1, 2, 4, 8, 16), (0, 0, 1, 2, 7) if self._late else (4, 8, 4, 2, 1))[0]
        if size == longest:
            return torch.arange(longest)
        return torch.randperm(longest, generator=self.noise)[:size].sort().values

    def _loss(self, clips: torch.Tensor, texts: list[str], frames: torch.Tensor) -> tuple[Any, ...]:
        """Of v-prediction: its mean, that of each clip, and each clip's time step."""
        count = len(clips)
        clean = thumbnails(clips.flatten(0, 1)).unflatten(0, (count, -1)).transpose(1, 2)
        # Spread evenly over the steps: less luck in a small batch.
        level = (torch.arange(count) + torch.rand(count, generator=self.noise)) / count
        level = (level ** (1.0 if self._late else EARLY) * TRAIN_STEPS).long().to(self._device)
        signal = self._signal[level].view(-1, 1, 1, 1, 1)
        noise = torch.randn(clean.shape, generator=self.noise).to(self._device)
        noised = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        place_frames(self._parts.unet, frames)
        states = embed(self._parts, texts).repeat_interleave(len(frames), 0)
        made = self._parts.unet(noised, level, encoder_hidden_states=states).sample
        wanted = signal.sqrt() * noise - (1 - signal).sqrt() * clean
        each = functional.mse_loss(made, wanted, reduction="none").mean((1, 2, 3, 4))
        return each.mean(), each.detach(), level

    def _memory(self) -> float:
        """Short at first, when the mean would else be of what nobody has learned yet."""
        return min(EMA, (1 + self.step) / (20 + self.step))

    @contextmanager
    def averaged(self) -> Iterator[Parts]:
        """The parts with the mean of their weights, ready for whole clips."""
        kept = [weight.detach().clone() for weight in self._weights]
        place_frames(self._parts.unet, torch.arange(LONGEST))
        self._set(self._mean)
        try:
            yield self._parts
        finally:
            self._set(kept)

    def _set(self, values: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for weight, value in zip(self._weights, values, strict=True):
                weight.copy_(value)

    def save(self, path: Path) -> None:
        """The whole state; the file is there either as it was or as it is now."""
        state = {
            "step": self.step,
            "weights": [weight.detach() for weight in self._weights],
            "mean": self._mean,
            "optimizer": self._optimizer.state_dict(),
            "chance": self.chance.getstate(),
            "noise": self.noise.get_state(),
        }
        write(state, path)

    def load(self, path: Path) -> None:
        """Raises OSError, or RuntimeError for another model's state."""
        state = read(path)
        self._set(state["weights"])
        for mine, theirs in zip(self._mean, state["mean"], strict=True):
            mine.copy_(theirs)
        self._optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.chance.setstate(state["chance"])
        self.noise.set_state(state["noise"])


def rate(step: int, total: int) -> float:
    """Up within WARM_UP steps, then down along a cosine to LAST_RATE."""
    fallen = 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))
    return min(1.0, (step + 1) / WARM_UP) * (LAST_RATE + (1 - LAST_RATE) * fallen)


def _mean(parts: list[torch.Tensor]) -> float:
    values = torch.cat([torch.zeros(0), *parts])
    return float(values.mean()) if len(values) else 0.0
