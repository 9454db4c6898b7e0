from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from webui.engine.base import Clip, EngineError, Snapshot, StoppedError
from webui.engine.synthetic import SyntheticEngine, draw_frames
from webui.request import MemorySettings, VideoRequest
from webui.settings import EngineSettings


class Recorder:
    def __init__(self, stop_at: int = 0) -> None:
        self.steps: list[int] = []
        self.snapshots: list[Snapshot | None] = []
        self.phases: list[str] = []
        self.stop_at = stop_at

    def step(self, done: int, snapshot: Snapshot | None = None) -> None:
        self.snapshots.append(snapshot)
        self.steps.append(done)
        if done == self.stop_at:
            raise StoppedError

    def phase(self, name: str, part: int = 0, parts: int = 0) -> None:
        self.phases.append(name)

    def decoded(self, clip: Clip, ready: int) -> None:
        pass

    def check(self) -> None:
        pass


def engine(**faults: Any) -> SyntheticEngine:
    made = SyntheticEngine(EngineSettings(step_seconds=0, faults=json.dumps(faults)))
    made.load()
    return made


PLAIN = MemorySettings()
REQUEST = VideoRequest("a cat", width=72, height=64, frames=4, steps=3)


def test_the_seed_and_the_prompt_make_the_picture() -> None:
    frames = draw_frames(REQUEST, 1)
    assert frames.shape == (4, 64, 72, 3)
    assert (draw_frames(REQUEST, 1) == frames).all()
    assert (draw_frames(REQUEST, 2) != frames).any()
    assert (draw_frames(VideoRequest("a dog", width=72, height=64, frames=4), 1) != frames).any()
    assert (frames[0] != frames[1]).any(), "it must move"


def test_every_step_is_told_and_the_chosen_seed_too() -> None:
    control = Recorder()
    clip = engine().generate(REQUEST, control, PLAIN)
    assert control.steps == [1, 2, 3]
    assert clip.parameters["seed"] >= 0
    assert (clip.frames == draw_frames(REQUEST, clip.parameters["seed"])).all()


def test_a_stop_ends_it_within_the_step() -> None:
    control = Recorder(stop_at=2)
    with pytest.raises(StoppedError):
        engine().generate(REQUEST, control, PLAIN)
    assert control.steps == [1, 2]


def test_out_of_memory_as_often_as_told() -> None:
    failing = engine(oom=2)
    for _ in range(2):
        with pytest.raises(EngineError) as raised:
            failing.generate(REQUEST, Recorder(), PLAIN)
        assert raised.value.reason == "OOM"
    assert len(failing.generate(REQUEST, Recorder(), PLAIN).frames) == 4


def test_only_some_prompts_fail() -> None:
    failing = engine(fail_prompt_contains="cat", reason="CUDA_ERROR")
    with pytest.raises(EngineError) as raised:
        failing.generate(REQUEST, Recorder(), PLAIN)
    assert raised.value.reason == "CUDA_ERROR"
    failing.generate(VideoRequest("a dog", width=64, height=64, steps=1), Recorder(), PLAIN)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_the_picture_needs_the_state_that_was_kept(step: int) -> None:
    whole, made = Recorder(), engine()
    clip = made.generate(replace(REQUEST, seed=-1), whole, PLAIN)
    kept = whole.snapshots[step - 1]
    assert kept is not None
    assert made.accepts(kept, REQUEST)
    rest = Recorder()
    again = made.generate(replace(REQUEST, seed=-1), rest, PLAIN, kept)
    assert rest.steps == [1, 2, 3][step:]
    assert again.parameters == clip.parameters
    assert (again.frames == clip.frames).all()
    broken = replace(kept, tensors={"state": np.zeros(32, np.uint8)})
    assert (made.generate(REQUEST, Recorder(), PLAIN, broken).frames != clip.frames).any()
    assert not made.accepts(replace(kept, tensors={"state": np.zeros(31, np.uint8)}), REQUEST)
    assert not made.accepts(replace(kept, tensors={}), REQUEST)


def test_the_context_makes_another_picture() -> None:
    plain, small = (
        engine().generate(replace(REQUEST, seed=1), Recorder(), MemorySettings(size)).frames for size in (None, 2)
    )
    assert (plain != small).any()


@pytest.mark.parametrize(
    ("faults", "memory", "phases"),
    [
        ({"oom_above_context": 3}, MemorySettings(3), ["load"]),
        ({"oom_without_offload": True}, MemorySettings(cpu_offload=True), ["load"]),
        ({"oom_without_tiling": True}, MemorySettings(vae_tiling=True), ["load", "step", "decode"]),
    ],
)
def test_memory_runs_out_unless_it_is_saved(faults: dict[str, Any], memory: MemorySettings, phases: list[str]) -> None:
    control = Recorder()
    with pytest.raises(EngineError) as raised:
        engine(**faults).generate(REQUEST, control, PLAIN)
    assert (raised.value.reason, control.phases) == ("OOM", phases)
    control = Recorder()
    assert len(engine(**faults).generate(REQUEST, control, memory).frames) == 4
    assert control.phases == ["load", "step", "decode", "encode"]
    engine(**faults, only_prompt_contains="dog").generate(REQUEST, Recorder(), PLAIN)


@pytest.mark.parametrize("faults", [{"hang_on_step": 1}, {"reason": "BAD_LUCK"}, {"load_error": "no model"}])
def test_bad_faults_and_load_errors_stop_the_start(faults: dict[str, Any]) -> None:
    with pytest.raises(EngineError) as raised:
        engine(**faults)
    assert raised.value.reason == "MODEL_LOAD_FAIL"


def test_the_fingerprint_follows_the_models() -> None:
    prints = {SyntheticEngine(EngineSettings(checkpoint=name)).load().fingerprint for name in ("a", "b", "a")}
    assert len(prints) == 2
