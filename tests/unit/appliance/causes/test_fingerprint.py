"""Equal failures are one kind, different ones are not, and no flood of messages costs much."""

from __future__ import annotations

import random
import string
import time
import tracemalloc

import pytest

from appliance.causes.fingerprint import (
    MOST_MINED,
    MOST_UNKNOWN,
    Fingerprint,
    Fingerprinter,
    Unknown,
    by_rules,
    mask,
)
from appliance.causes.outcome import Outcome, plain
from appliance.job import Reason


def failure(message: str, reason: Reason = Reason.UNKNOWN, where: str = "") -> Outcome:
    return Outcome(1.0, "a/0", "", None, reason, message, where)


def key(outcome: Outcome) -> str:
    read = Fingerprinter().read(outcome)
    return (read.settle() if isinstance(read, Unknown) else read).key


@pytest.mark.parametrize(
    ("message", "xid", "reason"),
    [
        ("NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, GPU has fallen off the bus.", 79, Reason.GPU_LOST),
        ("NVRM: Xid (PCI:0000:3b:00): 13, Graphics SM Warp Exception", 13, Reason.CUDA_ERROR),
        ("the driver said xid 31 on GPU 2", 31, Reason.CUDA_ERROR),
        ("Xid error 119: timeout", 119, Reason.GPU_LOST),
    ],
)
def test_an_xid_is_read_and_never_masked(message: str, xid: int, reason: Reason) -> None:
    found = by_rules(failure(message))
    assert found is not None
    assert (found.xid, found.reason, found.title) == (xid, reason, f"Xid {xid}")


def test_a_dead_gpu_is_not_a_programs_mistake() -> None:
    said = "NVRM: Xid (PCI:0000:{}:00): {}, pid={}, name=python3"
    dead = {key(failure(said.format(bus, 79, pid))) for bus, pid in (("3b", 1), ("5e", 22), ("af", 333))}
    own = {key(failure(said.format(bus, 13, pid))) for bus, pid in (("3b", 1), ("5e", 22), ("af", 333))}
    assert len(dead) == len(own) == 1
    assert dead != own


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (failure("the engine process died of SIGSEGV"), failure("the engine process died of SIGBUS")),
        (failure("the engine process ended with exit code 1"), failure("the engine process ended with exit code 3")),
        (failure("no progress in phase step for 9 s"), failure("no progress in phase load for 9 s")),
        (failure("CUDA error: device-side assert triggered"), failure("CUDA error: an illegal memory access")),
        (failure("x", Reason.OOM, "webui.engine.denoise:run"), failure("x", Reason.OOM, "webui.engine.decode:decode")),
        (failure("ValueError: bad scale"), failure("KeyError: no such block in it")),
    ],
)
def test_different_failures_are_told_apart(one: Outcome, other: Outcome) -> None:
    assert key(one) != key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (failure("CUDA out of memory. Tried to allocate 2.00 GiB"), failure("CUDA out of memory")),
        (failure("no progress in phase step for 120 s"), failure("no progress in phase step for 90 s")),
        (failure("RuntimeError: shape 4 does not fit 77"), failure("RuntimeError: shape 16 does not fit 154")),
        (failure("OSError: cannot read '/models/a.bin'"), failure("OSError: cannot read '/models/b.bin'")),
    ],
)
def test_the_same_failure_is_one_kind(one: Outcome, other: Outcome) -> None:
    assert key(one) == key(other)


def test_what_came_as_unknown_gets_the_reason_that_it_has() -> None:
    assert by_rules(failure("RuntimeError: CUDA out of memory.")).reason is Reason.OOM  # type: ignore[union-attr]
    told = by_rules(failure("MODEL_LOAD failed: CUDA out of memory", Reason.MODEL_LOAD_FAIL))
    assert told is not None
    assert told.reason is Reason.MODEL_LOAD_FAIL, "what is told is believed"
    for reason in set(Reason) - {Reason.UNKNOWN}:
        known = by_rules(failure("", reason))
        assert known is not None
        assert known.reason is reason
    assert by_rules(failure("")) is None


def test_templates_are_mined_from_what_no_rule_knows() -> None:
    reader = Fingerprinter()
    names = ("alpha", "beta", "gamma", "delta")
    read = {reader.read(failure(f"the block {name} of the attention was not converted")) for name in names}
    assert len(read) == 1
    (unknown,) = read
    assert isinstance(unknown, Unknown)
    assert unknown.settle().title == "the block <*> of the attention was not converted"
    other = reader.read(failure("connection to the model server was refused by the peer"))
    assert other != unknown
    assert isinstance(reader.read(failure("")), Unknown)


def test_equal_failures_are_equal_keys_in_another_process() -> None:
    known = Fingerprint(Reason.OOM, None, "gpu-memory", "webui.engine.decode:decode", "out of GPU memory")
    assert known.key == "71f3c7734b07"


def test_masks_name_what_differs() -> None:
    message = "job 01a22362-01b9-71c4-9f1c-45142bb03e50 at 0x7f00 read '/a/b' from /storage/x.bin in 3.25 s"
    assert mask(message) == "job <id> at <hex> read <text> from <path> in <number> s"


@pytest.mark.timeout(60)
def test_a_flood_of_different_messages_stays_small() -> None:
    """10,000 messages of 400 random characters each, with control characters and markup, from as many places."""
    chance = random.Random(1)
    letters = string.ascii_letters + " <>[]{}\x00\x1b\u202e\n"
    pool = ["".join(chance.choices(letters, k=100)) for _ in range(500)]
    reader, kinds = Fingerprinter(), set()
    tracemalloc.start()
    began = time.process_time()
    for number in range(10_000):
        message = f"{number} " + " ".join(chance.choices(pool, k=4))
        kinds.add(reader.read(failure(message, where=f"place:{number}")))
    seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(
        f"\n10,000 different messages: {seconds:.1f} s of processor time (traced), {peak / 2**20:.0f} MiB, "
        f"{len(kinds)} kinds"
    )
    assert len(kinds) <= MOST_UNKNOWN + 1
    assert len(reader._mined) <= MOST_MINED
    assert peak < 32 * 2**20
    for kind in kinds:
        settled = kind.settle()  # type: ignore[union-attr]
        assert (settled.title + settled.where).isprintable()
        assert len(settled.title) <= 160


def test_what_is_shown_is_one_plain_line() -> None:
    assert plain("a\x1b[31mred\x1b[0m\r\n\u202eb\u0000\tc\ud800", 80) == "a [31mred [0m b c"
    assert plain("x" * 500, 10) == "x" * 9 + "…"
