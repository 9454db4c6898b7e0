"""Each script carries only what it calls: every call defines all of it anew."""

from __future__ import annotations

import re

from appliance.queue.scripts import NAMES, SELDOM, _with_needed, load_scripts

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


SHELL = re.compile(r"^local function (\w+)\(\.\.\.\)\n.*?^return \1\(\.\.\.\)\nend\n", re.MULTILINE | re.DOTALL)


def definitions(source: str) -> set[str]:
    return set(re.findall(r"^local (?:function )?(\w+)", source, re.MULTILINE))


def test_a_script_has_only_what_it_uses() -> None:
    scripts = load_scripts(dict.fromkeys(SETTINGS, 1))
    assert set(scripts) == set(NAMES)
    for name, script in scripts.items():
        parts = [shell[0].partition("\n")[2].rpartition("\nend")[0] for shell in SHELL.finditer(script.source)]
        for part in (*parts, SHELL.sub(r"local function \1()\n", script.source)):
            for defined in definitions(part):
                # A value may be there for the shells alone.
                users = part if f"local function {defined}(" in part else script.source
                assert len(re.findall(rf"\b{defined}\b", users)) > 1, f"{name} does not use {defined}"
    owners = {name for name, script in scripts.items() if "claim_next" in definitions(script.source)}
    assert owners == {"claim", "commit_and_claim"}
    for name in set(NAMES) - owners:
        assert not definitions(scripts[name].source) & {"hand_over", "lease_job", "take_best"}, name


def test_the_name_of_a_key_is_no_use_of_a_function() -> None:
    beat = load_scripts(dict.fromkeys(SETTINGS, 1))["beat"].source
    assert '"{q}:lease"' in beat
    assert "observe_epoch" in definitions(beat)
    assert "wake_workers" not in definitions(beat)


def test_what_is_seldom_called_is_defined_when_it_is() -> None:
    scripts = load_scripts(dict.fromkeys(SETTINGS, 1))
    for name in ("claim", "commit_and_claim"):
        shells = {found[1] for found in SHELL.finditer(scripts[name].source)}
        assert shells == set(SELDOM), name
        outside = definitions(SHELL.sub("", scripts[name].source))
        assert "lease_job" in outside
        assert not outside & {"end_attempt", "requeue", "backoff_ms", "wake_workers"}, name
    # Where it is what the script is for, it is there as it is.
    assert "end_attempt" in definitions(SHELL.sub("", scripts["fail"].source))


def test_functions_share_their_values_and_not_their_constants() -> None:
    """A second `kept` within a function would keep from the others what it did."""
    shared = """
local kept = {}
local A_LIMIT = 3
local function add() kept[#kept + 1] = A_LIMIT end
local function could_run() add() end
local function reclaim() kept[1] = 2 end
"""
    text = _with_needed(shared, "reclaim()\ncould_run()\n")
    assert definitions(SHELL.sub("", text)) == {"kept"}
    assert re.findall(r"^local (?:function )?(\w+)", text, re.MULTILINE).count("kept") == 1
    assert text.endswith("reclaim()\ncould_run()\n")
