from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from appliance.agent import lease
from appliance.agent.watch import Progress, Watchdog
from appliance.job import Reason
from appliance.queue import BeatAnswer, Claim, FailKind
from appliance.settings import AgentSettings, Common, QueueSettings, RedisSettings, Secret


@pytest.fixture
def settings() -> AgentSettings:
    return AgentSettings(
        common=Common("agent", "n", "info", Path("/")),
        redis=RedisSettings(None, (), "queue", "u", Secret(""), 0),
        queue=QueueSettings(job_timeout_seconds=100),
        worker="n/0",
        webui_url="http://x",
        jobs_dir=Path("/"),
        cluster_token=Secret(""),
        stream_silence_seconds=2,
        no_progress_seconds=30,
        drain_seconds=1,
        load_seconds=40,
        decode_seconds=20,
        encode_seconds=10,
    )


def test_silence_is_a_crash(settings: AgentSettings) -> None:
    progress = Progress()
    watchdog = Watchdog(progress, settings, None)
    assert watchdog.judge(progress.last_line + 1.9) is None
    verdict = watchdog.judge(progress.last_line + 2.1)
    assert verdict is not None
    assert (verdict.kind, verdict.reason) == (FailKind.CRASH, Reason.WORKER_LOST)


def test_own_standstill_is_not_the_webuis_silence(settings: AgentSettings) -> None:
    progress = Progress()
    woken = progress.last_line + 60
    progress.forgive(60)
    assert Watchdog(progress, settings, None).judge(woken) is None


@pytest.mark.parametrize(
    ("phase", "limit"), [("load", 40), ("step", 30), ("decode", 20), ("encode", 10), ("", 30), ("dream", 30)]
)
def test_each_phase_has_its_own_patience(settings: AgentSettings, phase: str, limit: float) -> None:
    progress = Progress()
    progress.note({"event": "alive", "phase": phase})
    progress.last_line = progress.last_progress + limit - 1
    assert Watchdog(progress, settings, None).judge(progress.last_line) is None
    progress.last_line = progress.last_progress + limit + 1
    verdict = Watchdog(progress, settings, None).judge(progress.last_line)
    assert verdict is not None
    assert (verdict.kind, verdict.reason) == (FailKind.CRASH, Reason.TIMEOUT)
    assert f"in phase {phase or 'start'} for {limit:g} s" in verdict.message


@pytest.mark.parametrize(
    ("before", "event", "counts"),
    [
        ({}, {"event": "started", "total_steps": 20}, True),
        ({}, {"event": "step", "step": 1}, True),
        ({"event": "step", "step": 1}, {"event": "step", "step": 1}, False),
        ({"event": "step", "step": 1}, {"event": "step", "step": 2}, True),
        ({"event": "step", "step": 1}, {"event": "alive", "phase": "step"}, False),
        ({"event": "step", "step": 1}, {"event": "alive", "phase": "decode"}, True),
        ({"event": "alive", "phase": "decode"}, {"event": "alive", "phase": "decode", "part": 1, "parts": 3}, True),
        (
            {"event": "alive", "phase": "decode", "part": 1, "parts": 3},
            {"event": "alive", "phase": "decode", "part": 1, "parts": 3},
            False,
        ),
        ({"event": "step", "step": 9}, {"event": "checkpoint", "step": 9}, True),
        ({"event": "checkpoint", "step": 9}, {"event": "checkpoint", "step": 9}, False),
        ({}, {"event": "something new"}, False),
    ],
)
def test_what_counts_as_progress(before: dict[str, object], event: dict[str, object], counts: bool) -> None:
    progress = Progress()
    progress.note(before)
    progress.last_progress = 0
    progress.note(event)
    assert (progress.last_progress > 0) is counts


def test_a_resumed_attempt_begins_at_its_checkpoint() -> None:
    progress = Progress()
    progress.note({"event": "started", "total_steps": 20, "resumed_from": 12})
    assert (progress.resumed_from, progress.step, progress.checkpoint_step) == (12, 12, 12)
    progress.note({"event": "checkpoint", "step": 15})
    assert (progress.resumed_from, progress.checkpoint_step) == (12, 15)


def test_what_went_before_the_order_is_not_the_webuis_silence(settings: AgentSettings) -> None:
    progress = Progress()
    progress.last_line = progress.last_progress = progress.last_line - 60
    progress.order_sent()
    assert Watchdog(progress, settings, None).judge(progress.last_line + 1) is None


@pytest.mark.parametrize(
    ("deadline", "ran", "kind"), [(None, 101, FailKind.ERROR), (5.0, 6, FailKind.PERMANENT), (5.0, 4, None)]
)
def test_timeouts(settings: AgentSettings, deadline: float | None, ran: float, kind: FailKind | None) -> None:
    progress = Progress()
    progress.last_line = progress.last_progress = progress.began + ran
    verdict = Watchdog(progress, settings, deadline).judge(progress.began + ran)
    assert (verdict.kind if verdict else None) is kind


def test_steps_are_counted_and_nonsense_is_ignored() -> None:
    progress = Progress()
    progress.note({"event": "started", "total_steps": 20})
    progress.note({"event": "step", "step": 3, "total_steps": 20})
    progress.note({"event": "step", "step": "four", "total_steps": -1})
    assert (progress.started, progress.step, progress.total_steps, progress.phase) == (True, 3, 20, "step")


@pytest.mark.parametrize(
    ("image", "kept"),
    [("/9j/", "/9j/"), (None, ""), (7, ""), ("no base64", ""), ("ü===", ""), ("A" * (64 * 1024 + 4), "")],
)
def test_only_a_small_picture_is_passed_on(image: object, kept: str) -> None:
    progress = Progress()
    progress.note({"event": "preview", "step": 1, "image": image})
    assert progress.preview == kept
    assert progress.step == 0


async def test_pictures_are_shown_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str | None] = []

    async def beat(*_: object, preview: str | None, **__: object) -> BeatAnswer:
        shown.append(preview)
        return BeatAnswer.OK

    claim = Claim("job", "nonce", 1, 1, None, "{}")
    progress = Progress()
    keeper = lease.Lease(SimpleNamespace(beat=beat), claim, progress)  # type: ignore[arg-type]
    for picture in ("one", "two", "three", ""):
        progress.preview = picture or progress.preview
        if not picture:
            monkeypatch.setattr(lease, "PREVIEW_SECONDS", 0.0)
            keeper._next_preview = 0.0
        await keeper.beat()
    assert shown == ["one", None, None, "three"]
