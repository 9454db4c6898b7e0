"""Brings a running cluster to another release, worker by worker, and back by itself where that does not go well.

Everything is written to the journal before it is done, so that an interrupted upgrade can go on, or back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from generator.errors import GeneratorError, ToolError, Unhealthy, UserError
from generator.journal import Journal
from generator.ops import nodes
from generator.ops.client import Client
from generator.ops.cluster import Place, last_lines, replace_services, wait_until
from generator.ops.upgrade_hosts import (
    Site,
    counts_of,
    fetch_images,
    figures_of,
    read_text,
    replace_worker,
    restarts_of,
    services_there,
    sick_of,
    write_journal,
    write_text,
)
from generator.ops.upgrade_orders import Orders, held_in, in_sequence, orders_in
from generator.progress import Progress
from generator.release_text import brought_to_new, taken_back
from generator.rollout import Gate, Stage, Verdict, judge, stages

POLL_SECONDS = 2.0
READY_SECONDS = 120.0
IN_TURN = ("controller", "redis", "sentinel", "api", "gateway")


@dataclass(frozen=True)
class Outcome:
    """`failure` is why it went back; empty where the new release runs everywhere."""

    journal: Journal
    seconds: float
    failure: str = ""


class Upgrade:
    """One upgrade under way. `start_seconds`: how long a worker may take until it is healthy."""

    def __init__(
        self, site: Site, journal: Journal, gate: Gate, progress: Progress, *, start_seconds: int = 600
    ) -> None:
        self._site = site
        self._journal = journal
        self._gate = gate
        self._progress = progress
        self._start_seconds = start_seconds
        self._orders = Orders(site.running, f"upgrade to {journal.new}")

    def run(self) -> Outcome:
        """Raises only what leaves the journal in place, for another try: hosts or gateways that cannot be reached."""
        begin = time.monotonic()
        if not self._journal.failure:
            fetch_images(self._site, self._progress)
            self._note(self._journal.with_sequence(self._sequence()))
            try:
                self._forward()
            except _StageError as failed:
                self._note(self._journal.going_back(str(failed)))
        failure = self._journal.failure
        if failure:
            self._note(self._journal)  # that it goes back: nobody may go forward with what is half back
            self._progress.warn(f"going back to {self._journal.old}: {failure}")
            self._back()
        else:
            self._change_file()
        write_journal(self._site.out, None)
        return Outcome(self._journal, time.monotonic() - begin, failure)

    def _note(self, journal: Journal) -> None:
        write_journal(self._site.out, journal)
        self._journal = journal

    # --- forward -------------------------------------------------------------------------------------------------

    def _sequence(self) -> tuple[str, ...]:
        workers = self._site.workers
        if self._journal.sequence or self._journal.upgraded:  # as it was begun, by an older version in their own order
            begun = [worker for worker in self._journal.sequence if worker in workers]
            return (*begun, *(worker for worker in workers if worker not in begun))
        return in_sequence(workers, orders_in(self._orders.nodes()))

    def _forward(self) -> None:
        workers = self._journal.sequence
        for stage in stages(workers):
            if stage.name in self._journal.passed:
                continue
            for worker in stage.workers:
                self._change(worker, stage)
            self._watch(stage)
            self._note(self._journal.with_passed(stage))
        for host, place in self._site.places.items():
            self._change_rest(host, place)
        for worker in workers:
            self._give_back(worker)

    def _change(self, worker: str, stage: Stage) -> None:
        site = self._site
        self._note(self._journal.with_worker(worker))
        self._empty(worker, force=self._is_last_at_work(worker))
        self._note(self._journal.begun_at(self._ordered_at(worker)))
        site.write(self._journal)
        try:
            replace_worker(site, worker, self._progress, seconds=self._start_seconds)
        except Unhealthy as error:
            raise _StageError(f"{worker} does not become healthy with {self._journal.new}: {error}") from error
        if worker not in self._journal.held:
            self._orders.try_out(worker, stage.share)

    def _watch(self, stage: Stage) -> None:
        """Until the gate of this stage opens; raises where it stays shut."""
        site, gate = self._site, self._gate
        if self._journal.held.issuperset(stage.workers):
            self._progress.say(f"{', '.join(stage.workers)}: out of work by an operator's order, nothing to watch")
            return
        new = self._journal.upgraded
        old = [worker for worker in self._journal.sequence if worker not in new]
        first = self._orders.nodes()
        since_new, since_old = counts_of(first, new), counts_of(first, old)
        restarts_before = restarts_of(site, new)
        begin, sick_since = time.monotonic(), None
        with self._progress.task(f"watch {stage.name}") as task:
            while True:
                time.sleep(POLL_SECONDS)
                seen = self._orders.nodes()
                now = time.monotonic()
                figures = figures_of(site, seen, new, since_new, restarts_before)
                others = (counts_of(seen, old) - since_old).figures()
                sick_since = (sick_since or now) if figures.sick else None
                verdict = judge(figures, others, now - begin, now - sick_since if sick_since else None, gate)
                if verdict.passed is not None:
                    break
                task.update(verdict.reason, done=int(now - begin), total=int(gate.dwell_seconds))
            self._conclude(stage, verdict, new)
            task.finish(verdict.reason)

    def _conclude(self, stage: Stage, verdict: Verdict, new: Sequence[str]) -> None:
        if verdict.passed:
            return
        said = "\n".join(f"--- {name}\n{self._last_lines(name)}" for name in new)
        raise _StageError(f"{stage.name}: {verdict.reason}\n{said}")

    def _change_rest(self, host: str, place: Place) -> None:
        """Everything else on one host: while it is replaced, the other hosts answer."""
        if host in self._journal.hosts:
            return
        self._note(self._journal.with_host(host))
        self._site.write(self._journal)
        with self._progress.task(f"the rest of {host}") as task:
            try:
                self._replace_in_turn(place, task.update)
            except Unhealthy as error:
                raise _StageError(f"{host} does not become healthy with {self._journal.new}: {error}") from error
            self._wait_until_well(task.update)
            task.finish("healthy")

    def _wait_until_well(self, told: Callable[[str], None]) -> None:
        """Before the next host: this one's parts are back in the cluster's work."""
        seen: list[str] = []

        def is_well() -> bool:
            try:
                seen[:] = sick_of(self._site.running.ask(Client.nodes), self._journal.sequence)
            except Unhealthy as error:
                seen[:] = [str(error)]
            told("; ".join(seen))
            return not seen

        if not wait_until(is_well, READY_SECONDS):
            raise _StageError(f"not well after {READY_SECONDS:.0f} s: {'; '.join(seen)}")

    def _change_file(self) -> None:
        """As it stands there now: somebody may have edited it meanwhile."""
        before = read_text(self._site.file)
        edit = brought_to_new(before, self._journal, str(self._site.file))
        if edit.text != before:
            self._note(self._journal.with_text(before))
            write_text(self._site.file, edit.text)
        for told in edit.told:
            self._progress.warn(told)

    # --- back ----------------------------------------------------------------------------------------------------

    def _back(self) -> None:
        """Does as much as it can: where one host cannot be put back, the others are, and it is told; another try does
        what is left."""
        site, goal, troubles = self._site, self._journal, []
        touched = goal.upgraded
        steps = [(host, self._restore_rest) for host in reversed(goal.hosts_ahead)]
        steps += [(worker, self._restore) for worker in reversed(goal.workers_ahead)]
        for name, restore in steps:
            goal = goal.with_restored(name)
            failed = self._try(partial(restore, name, goal))
            troubles += failed
            if not failed:
                self._note(self._journal.with_restored(name))
        site.write(goal)
        troubles += self._try(self._take_file_back)
        for worker in touched:
            troubles += self._try(partial(self._give_back, worker))
        troubles += self._try(partial(self._try_jobs_again, touched))
        if troubles:
            told = "\n".join(troubles)
            raise Unhealthy(
                f"not everything is back as it was; `python -m generator upgrade` tries the rest again\n{told}"
            )

    def _take_file_back(self) -> None:
        now = read_text(self._site.file)
        edit = taken_back(now, self._journal, str(self._site.file))
        if edit.text != now:
            write_text(self._site.file, edit.text)
        for told in edit.told:
            self._progress.warn(told)

    def _try_jobs_again(self, workers: Collection[str]) -> None:
        """What was given up because of the new release is none of the users' business."""
        since, running = self._journal.since, self._site.running
        if not since:
            return
        for job in running.ask(partial(Client.dead_jobs, since=since)):
            if any(attempt["worker"] in workers for attempt in job["attempts"]["history"]):
                running.ask(partial(Client.retry, job_id=job["id"]))
                self._progress.say(f"job {job['id']} had been given up and runs again")

    def _restore(self, name: str, goal: Journal) -> None:
        self._site.write(goal)
        self._try(partial(self._empty, name, force=True))
        replace_worker(self._site, name, self._progress, seconds=self._start_seconds)
        self._give_back(name)

    def _restore_rest(self, name: str, goal: Journal) -> None:
        self._site.write(goal)
        with self._progress.task(f"back: the rest of {name}") as task:
            self._replace_in_turn(self._site.places[name], task.update)
            task.finish("healthy")

    def _replace_in_turn(self, place: Place, told: Callable[[str], None]) -> None:
        """What answers users one at a time, each waiting out the other; all at once would be away for the longest."""
        there = services_there(place)
        for service in (one for one in IN_TURN if one in there):
            replace_services(place, [service], told, seconds=self._start_seconds)
        replace_services(place, (), told, seconds=self._start_seconds)

    def _try(self, step: Callable[[], None]) -> list[str]:
        try:
            step()
        except (UserError, Unhealthy, ToolError) as error:
            self._progress.warn(str(error))
            return [str(error)]
        return []

    # --- both ----------------------------------------------------------------------------------------------------

    def _empty(self, worker: str, *, force: bool) -> None:
        """Nobody new comes to it, and what it does it ends, as far as the time for stopping it reaches."""
        place, _ = self._site.worker(worker)
        standing = self._orders.standing(worker)
        if not self._orders.is_ours(standing):
            self._note(self._journal.with_order(worker, standing))
        self._orders.take_out(worker, self._journal.orders.get(worker), force=force)
        try:
            nodes.wait_until_idle(self._site.running, [worker], place.stop_grace_seconds, self._progress)
        except Unhealthy as error:  # its job goes on elsewhere, from its checkpoint
            self._progress.say(str(error))

    def _ordered_at(self, worker: str) -> float:
        """By the queue's clock, never by this machine's; 0 where the order is gone already, or is none of ours."""
        standing = self._orders.standing(worker)
        return float(standing["at"]) if standing is not None and self._orders.is_ours(standing) else 0.0

    def _give_back(self, worker: str) -> None:
        self._orders.give_back(worker, self._journal.orders.get(worker))

    def _is_last_at_work(self, worker: str) -> bool:
        held = held_in(self._orders.nodes())
        return all(other == worker or other in held for other in self._journal.sequence)

    def _last_lines(self, worker: str) -> str:
        place, _ = self._site.worker(worker)
        return last_lines(place, self._site.services(worker))


class _StageError(GeneratorError):
    """The new release is not as good as the old one."""
