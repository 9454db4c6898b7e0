from __future__ import annotations

import io
import json

import pytest

from generator.progress import Mode, Progress


def shown(mode: Mode) -> str:
    stream = io.StringIO()
    progress = Progress(mode, stream)
    progress.say("hello [world]")
    progress.warn("careful")
    with progress.task("redis") as task:
        task.update("step one", 1, 2)
        task.update("step one", 1, 2)
        task.finish("built")
    with pytest.raises(RuntimeError), progress.task("gateway"):
        raise RuntimeError("no such package\nmore")
    return stream.getvalue()


def test_plain_lines_without_repeats() -> None:
    lines = shown(Mode.PLAIN).splitlines()
    assert lines[:3] == ["hello [world]", "warning: careful", "redis: step one"]
    assert lines[3].startswith("redis: built (")
    assert lines[4:] == ["failed: gateway: no such package"]


def test_json_is_one_object_a_line() -> None:
    events = [json.loads(line) for line in shown(Mode.JSON).splitlines()]
    assert [event["event"] for event in events] == ["info", "warning", "step", "done", "failed"]
    assert events[2] == {"event": "step", "task": "redis", "text": "step one"}


def test_quiet_still_warns() -> None:
    assert shown(Mode.QUIET).splitlines() == ["warning: careful", "failed: gateway: no such package"]


def test_live_says_the_same_and_leaves_no_bar_running() -> None:
    text = shown(Mode.LIVE)
    assert "hello [world]" in text
    assert "redis: built (" in text
    assert "gateway: no such package" in text


def test_a_pipe_gets_plain_lines() -> None:
    assert Progress(Mode.AUTO, io.StringIO()).mode is Mode.PLAIN
