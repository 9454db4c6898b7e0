"""Trains the demo's model and lets it out only when clips show what their prompts say.

    cd images/webui && python -m demo_model.train --work /tmp/demo-model --minutes 60 [--device cuda]

Ended or stopped at any time, the same command goes on where it was. When all steps are done, or with `--gate`, the
engine itself makes 64 prompts x 2 seeds; the table is printed, and only if the gate passes the models lie in
WORK/models and the exit status is 0. It is 1 when the gate fails, and 3 when the time was over before the steps.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import time
from pathlib import Path

import torch

from demo_model import autoencoder, gate
from demo_model.clips import FRAMES, SCENES, draw
from demo_model.model import Parts, export, make_parts
from demo_model.state import read, write
from demo_model.trainer import Losses, Trainer

DONE, FAILED, NOT_DONE = 0, 1, 3
LIMIT_MB = 15
FAITHFUL, LOOKED_AT = 0.99, 64  # of the autoencoder's clips must still be seen as what they were


class Run:
    """One start of the script."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.work: Path = options.work
        self.begun = time.monotonic()
        self.work.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(options.threads)
        self.parts: Parts = make_parts(options.seed, self.work).to(options.device)
        self.trainer = Trainer(self.parts, options.steps, options.seed, options.device)

    def tell(self, line: str) -> None:
        """On the screen and in WORK/log.txt."""
        text = f"{time.strftime('%H:%M:%S')} {(time.monotonic() - self.begun) / 60:6.1f} min  {line}"
        print(text, flush=True)
        with (self.work / "log.txt").open("a") as log:
            log.write(text + "\n")

    def autoencoder(self) -> bool:
        """Takes up what an earlier start has trained, or left half trained. Whether it is done in the time there is."""
        done, state = self.work / "autoencoder.pt", self.work / "autoencoder.state.pt"
        options, vae = self.options, self.parts.vae
        if done.is_file():
            vae.load_state_dict(read(done))
        elif options.autoencoder_steps:
            teacher = autoencoder.Teacher(vae, options.autoencoder_steps, options.seed, options.device)
            if state.is_file():
                teacher.load(state)
            saved = time.monotonic()
            while teacher.step < teacher.total and not self.is_over:
                teacher.train_step(self.tell)
                if time.monotonic() - saved > options.save_minutes * 60:
                    teacher.save(state)
                    saved = time.monotonic()
            teacher.save(state)
            if teacher.step < teacher.total:
                return False
            write(vae.state_dict(), done)
        vae.eval()
        return True

    @property
    def is_over(self) -> bool:
        return bool(time.monotonic() - self.begun >= self.options.minutes * 60)

    def faithful(self) -> bool:
        """Whether the autoencoder keeps what is to be seen: shapes, too."""
        scenes = random.Random(self.options.seed).sample(SCENES, LOOKED_AT)  # noqa: S311
        frames = torch.arange(FRAMES).float().to(self.options.device)
        clips = draw(scenes, frames, torch.Generator().manual_seed(self.options.seed))
        made = (gate.to_bytes(clip) for clip in autoencoder.made_again(self.parts.vae, clips))
        result = gate.judge(zip(scenes, made, strict=True))
        self.tell(f"autoencoder: {result.short()}")
        return min(result.right.values()) >= FAITHFUL * result.clips

    def train(self) -> bool:
        """Whether all steps are done."""
        options, trainer, state = self.options, self.trainer, self.work / "state.pt"
        if state.is_file():
            trainer.load(state)
            self.tell(f"goes on after step {trainer.step}")
        saved = told = time.monotonic()
        while trainer.step < options.steps and not self.is_over:
            trainer.train_step()
            if trainer.step % 50 == 0:
                now = time.monotonic()
                self.tell(f"step {trainer.step}/{options.steps} {trainer.losses} {(now - told) / 50:.2f} s/step")
                trainer.losses, told = Losses(), now
            if time.monotonic() - saved > options.save_minutes * 60:
                trainer.save(state)
                saved = time.monotonic()
            if trainer.step % options.look_every == 0:
                self.look()
                told = time.monotonic()
        trainer.save(state)
        return bool(trainer.step >= options.steps)

    def look(self) -> None:
        """A small gate on the way: 16 prompts in few steps, looked at without the autoencoder."""
        with self.trainer.averaged() as parts:
            asked = gate.cases()[::8]
            clips = gate.sample(parts, asked, steps=10)
        result = gate.judge(zip((scene for scene, _, _ in asked), clips, strict=True))
        write(clips.cpu(), self.work / "looked.pt")
        self.tell(f"step {self.trainer.step} small gate: {result.short()}")

    def finish(self) -> bool:
        """Exports the models and has the engine make the gate's clips; what fails is deleted."""
        options, models = self.options, self.work / "models"
        unproved = self.work / "models.unproved"
        shutil.rmtree(unproved, ignore_errors=True)
        with self.trainer.averaged() as parts:
            export(parts, unproved)
        size = sum(path.stat().st_size for path in unproved.rglob("*") if path.is_file()) / 1e6
        clips = gate.generated(unproved, self.work, gate.cases(), options.device, options.threads)
        result = gate.judge(clips)
        self.tell(f"step {self.trainer.step}, {size:.1f} MB\n{result.table()}")
        passed = self.faithful() and result.passed and size <= LIMIT_MB
        if passed:
            shutil.rmtree(models, ignore_errors=True)
            unproved.rename(models)
        else:
            shutil.rmtree(unproved)
        self.tell(f"the gate {'passed: ' + str(models) if passed else 'failed: nothing to ship'}")
        return passed


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the state, which it goes on from")
    parser.add_argument("--steps", type=int, default=12000, help="in all; the learning rate falls over them")
    parser.add_argument("--minutes", type=float, default=24 * 60, help="of this start")
    parser.add_argument("--autoencoder-steps", type=int, default=2000, help="0: go on without one, and judge in vain")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--seed", type=int, default=20240607)
    parser.add_argument("--save-minutes", type=float, default=2.0)
    parser.add_argument("--look-every", type=int, default=400, help="steps between two small gates")
    parser.add_argument("--gate", action="store_true", help="judge the state there is, however many steps it has")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    run = Run(_options(arguments))
    done = run.autoencoder() and run.train()
    if not done and not run.options.gate:
        run.tell("the time is over; the same command goes on")
        return NOT_DONE
    return DONE if run.finish() else FAILED


if __name__ == "__main__":
    sys.exit(main())
