"""From a history to what was broken in it. Pure: the same records give the same violations.

A job's stream is replicated together with the hash that the scripts decide by, so the entries that outlived every
failover are the decisions in their true order, whatever any host's clock said. The users' own observations (answers and
reads) count beside it: what they were told must stay true, even if it was told by a master that lost its memory.

A result counts as committed when the queue says so. A COMMIT file alone does not: an attempt that stood still between
its last heartbeat and link(2) may create one for a job that has been cancelled meanwhile; nobody is ever shown it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from tests.integration.chaos.history import Cancel, CommitFile, Event, Final, Leftover, Read, Record, Submit

LOST = "acknowledged job lost"
DUPLICATED = "one submission became two jobs"
TWO_COMMITS = "two commits"
COMMIT_AFTER_CANCEL = "commit after a confirmed cancel"
FENCED_COMMIT = "commit by a fenced attempt"
INNOCENT = "innocent job taken along"
UNASKED = "cancelled without being asked"
LEAK = "leak"

FINAL_STATES = frozenset({"done", "cancelled", "dead"})
PLAIN = "plain"
GAP = "gap"
"""Stands in a job's events where some have expired unseen."""


@dataclass(frozen=True)
class Violation:
    kind: str
    job: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.job or '-'}: {self.detail}"


@dataclass
class Story:
    """Everything that a history says about one job."""

    job: str
    submits: list[Submit] = field(default_factory=list)
    cancels: list[Cancel] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    commit: CommitFile | None = None
    final: Final | None = None

    @property
    def acknowledged(self) -> bool:
        return any(submit.outcome == "accepted" for submit in self.submits)

    @property
    def kind(self) -> str:
        return self.submits[0].kind if self.submits else PLAIN

    @property
    def cancel_confirmed(self) -> float | None:
        """When a user was first told that the job is cancelled, by the call itself or by reading it later."""
        told = [call.end for call in self.cancels if call.state == "cancelled"]
        told += [read.end for read in self.reads if read.state == "cancelled"]
        return min(told, default=None)


def check(records: Iterable[Record]) -> list[Violation]:
    records = list(records)
    stories = tell(records)
    found = [violation for rule in RULES for story in stories for violation in rule(story)]
    found += duplicated(records)
    found += [Violation(LEAK, "", f"{left.where}: {left.what}") for left in records if isinstance(left, Leftover)]
    return found


def tell(records: Iterable[Record]) -> list[Story]:
    stories: dict[str, Story] = {}

    def of(job: str) -> Story:
        return stories.setdefault(job, Story(job))

    for record in records:
        match record:
            case Submit() if record.job:
                of(record.job).submits.append(record)
            case Cancel():
                of(record.job).cancels.append(record)
            case Read():
                of(record.job).reads.append(record)
            case Event():
                of(record.job).events.append(record)
            case CommitFile():
                of(record.job).commit = record
            case Final():
                of(record.job).final = record
    for story in stories.values():
        story.events.sort(key=lambda event: entry_order(event.entry))
    return list(stories.values())


def entry_order(entry: str) -> tuple[int, int]:
    milliseconds, _, number = entry.partition("-")
    return int(milliseconds), int(number or 0)


# --- one job -----------------------------------------------------------------------------------------------------


def lost(story: Story) -> Iterator[Violation]:
    """Acknowledged, or seen with a result, and in the end not there, not ended or without that result."""
    if not story.acknowledged:
        return
    final = story.final
    if final is None:
        yield Violation(LOST, story.job, "Redis does not know it")
        return
    if final.state not in FINAL_STATES:
        yield Violation(LOST, story.job, f"still {final.state} at the end")
    if final.state == "done" and (story.commit is None or not story.commit.whole):
        yield Violation(LOST, story.job, f"done without its files: {story.commit}")
    if final.state != "done" and any(read.state == "done" for read in story.reads):
        yield Violation(LOST, story.job, f"was shown as done, ended {final.state}")


def two_commits(story: Story) -> Iterator[Violation]:
    """Committed again after its end, or the winner changed: on storage, in Redis, or before a user's eyes."""
    done = [event for event in story.events if event.type == "done"]
    if len(done) > 1:
        yield Violation(TWO_COMMITS, story.job, f"the queue accepted {len(done)}: {done}")
    results = {read.result for read in story.reads if read.state == "done"}
    if story.final is not None and story.final.state == "done":
        results.add(story.final.result)
        results.update({story.commit.result} if story.commit is not None else ())
    if len(results) > 1:
        yield Violation(TWO_COMMITS, story.job, f"{len(results)} different results: {sorted(results)}")


def commit_after_cancel(story: Story) -> Iterator[Violation]:
    confirmed = story.cancel_confirmed
    if confirmed is None:
        return
    if story.final is not None and story.final.state == "done":
        yield Violation(COMMIT_AFTER_CANCEL, story.job, "a user was told that it is cancelled; it ended done")
    later = [read for read in story.reads if read.state == "done" and read.end > confirmed]
    if later:
        yield Violation(COMMIT_AFTER_CANCEL, story.job, f"a user was told that it is cancelled, then: {later[0]}")
    ends = [event.type for event in story.events if event.type in ("cancelled", "done")]
    if "cancelled" in ends and "done" in ends[ends.index("cancelled") :]:
        yield Violation(COMMIT_AFTER_CANCEL, story.job, f"the queue says {ends}")


def fenced_commit(story: Story) -> Iterator[Violation]:
    """Only the attempt that holds the job may commit: the last one claimed, and not taken away since."""
    last = 0
    holder: int | None = None if story.events and story.events[0].type != "queued" else 0
    for event in story.events:
        if event.type == "running":
            if event.fence <= last:
                yield Violation(FENCED_COMMIT, story.job, f"fence {event.fence} was handed out after {last}")
            holder = last = event.fence
        elif event.type == GAP:
            holder = None
        elif event.type in ("queued", "delayed", "cancelled", "dead"):
            holder = 0
        elif event.type == "done" and holder is not None:
            if event.fence != holder:
                whose = f"{holder} held the job" if holder else "nobody held the job"
                yield Violation(FENCED_COMMIT, story.job, f"attempt {event.fence} committed while {whose}")
            holder = 0


def innocent(story: Story) -> Iterator[Violation]:
    """A job that does no harm ends done, or cancelled because somebody asked for it."""
    final = story.final
    if final is None or story.kind != PLAIN or not story.acknowledged:
        return
    if final.state == "dead":
        yield Violation(INNOCENT, story.job, f"dead after {final.attempts} attempts: {final.reason}: {final.message}")


def unasked(story: Story) -> Iterator[Violation]:
    if story.final is not None and story.final.state == "cancelled" and not story.cancels:
        yield Violation(UNASKED, story.job, "nobody had asked for it")


RULES: tuple[Callable[[Story], Iterator[Violation]], ...] = (
    lost,
    two_commits,
    commit_after_cancel,
    fenced_commit,
    innocent,
    unasked,
)


# --- across jobs -------------------------------------------------------------------------------------------------


def duplicated(records: Iterable[Record]) -> list[Violation]:
    """A retry with the same key must be answered with the same job."""
    jobs: dict[tuple[str, str], set[str]] = defaultdict(set)
    for record in records:
        if isinstance(record, Submit) and record.outcome == "accepted":
            jobs[record.user, record.key].add(record.job)
    return [
        Violation(DUPLICATED, " ".join(sorted(ids)), f"all acknowledged for the key {key!r} of {user}")
        for (user, key), ids in jobs.items()
        if len(ids) > 1
    ]
