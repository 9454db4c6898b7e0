"""Each script carries only what it calls: every call defines all of it anew."""

from __future__ import annotations

import re

from appliance.queue.scripts import NAMES, load_scripts

SETTINGS = (
    "lease_ms",
    "beat_ms",
    "grace_ms",
    "stall_ms",
    "queue_limit",
    "crash_budget",
    "error_budget",
    "oom_budget",
    "retention_ms",
)


def definitions(source: str) -> set[str]:
    return set(re.findall(r"^local (?:function )?(\w+)", source, re.MULTILINE))


def test_a_script_has_only_what_it_uses() -> None:
    scripts = load_scripts(dict.fromkeys(SETTINGS, 1))
    assert set(scripts) == set(NAMES)
    for name, script in scripts.items():
        for defined in definitions(script.source):
            assert len(re.findall(rf"\b{defined}\b", script.source)) > 1, f"{name} does not use {defined}"
    owners = {name for name, script in scripts.items() if "claim_next" in definitions(script.source)}
    assert owners == {"claim", "commit_and_claim"}
    for name in set(NAMES) - owners:
        assert not definitions(scripts[name].source) & {"hand_over", "lease_job", "take_best"}, name


def test_the_name_of_a_key_is_no_use_of_a_function() -> None:
    beat = load_scripts(dict.fromkeys(SETTINGS, 1))["beat"].source
    assert '"{q}:lease"' in beat
    assert "observe_epoch" in definitions(beat)
    assert "wake_workers" not in definitions(beat)
