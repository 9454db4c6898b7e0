from __future__ import annotations

from pathlib import Path

import pytest

from appliance.agent.watch import Progress, Watchdog
from appliance.job import Reason
from appliance.queue import FailKind
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


def test_alive_without_progress_is_a_timeout(settings: AgentSettings) -> None:
    progress = Progress()
    progress.note({"event": "alive", "phase": "load"})
    progress.last_line = progress.last_progress + 31
    verdict = Watchdog(progress, settings, None).judge(progress.last_line)
    assert verdict is not None
    assert (verdict.kind, verdict.reason) == (FailKind.CRASH, Reason.TIMEOUT)
    assert "load" in verdict.message


def test_a_new_phase_is_progress() -> None:
    progress = Progress()
    progress.last_progress = 0
    progress.note({"event": "alive", "phase": "decode"})
    assert progress.last_progress > 0
    progress.last_progress = 0
    progress.note({"event": "alive", "phase": "decode"})
    assert progress.last_progress == 0


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
