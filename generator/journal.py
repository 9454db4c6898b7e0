"""What an upgrade remembers of itself, as a value: who goes on with one that was interrupted knows no more. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from generator.errors import UserError
from generator.rollout import Release, Stage

Order = Mapping[str, Any]
"""About one worker, as the api tells it: order, by, at, reason, share, until."""


def is_held(order: Order) -> bool:
    """Whether it keeps a worker out of work."""
    return order["order"] in ("drain", "quarantine")


@dataclass(frozen=True)
class Journal:
    """How far an upgrade has come. Written before each change, so that whoever goes on changes nothing twice."""

    old: Release
    new: Release
    upgraded: tuple[str, ...] = field(default=())
    passed: tuple[str, ...] = field(default=())
    """Stages whose gate was passed."""
    hosts: tuple[str, ...] = field(default=())
    """Hosts on which everything else has changed, too."""
    failure: str = ""
    """Why it goes back; empty while it goes forward."""
    since: float = 0.0
    """When its first worker was taken out of work, Unix time by the queue's clock; 0: none was yet."""
    restored: tuple[str, ...] = field(default=())
    """Of `upgraded` and `hosts` those that have the old release again. Noted when it is so, not when it is begun."""
    old_text: str = ""
    """What cluster.yaml held when the upgrade changed it; empty: it has not yet."""
    sequence: tuple[str, ...] = field(default=())
    """All workers as they come in turn. Noted at the beginning: whoever goes on has to have the same stages."""
    orders: Mapping[str, Order | None] = field(default_factory=dict)
    """What was ordered about a worker, and not by the upgrade, when it was last taken out of work."""

    @property
    def held(self) -> frozenset[str]:
        """Workers that somebody else keeps out of work."""
        return frozenset(worker for worker, order in self.orders.items() if order is not None and is_held(order))

    @property
    def workers_ahead(self) -> tuple[str, ...]:
        """Workers that are to have the new release."""
        return tuple(worker for worker in self.upgraded if worker not in self.restored)

    @property
    def hosts_ahead(self) -> tuple[str, ...]:
        """Hosts on which everything else is to have it, too."""
        return tuple(host for host in self.hosts if host not in self.restored)

    def with_worker(self, worker: str) -> Journal:
        return self if worker in self.upgraded else replace(self, upgraded=(*self.upgraded, worker))

    def with_passed(self, stage: Stage) -> Journal:
        return replace(self, passed=(*self.passed, stage.name))

    def with_host(self, host: str) -> Journal:
        return self if host in self.hosts else replace(self, hosts=(*self.hosts, host))

    def with_restored(self, name: str) -> Journal:
        """A worker, or everything else on the host of this name."""
        return self if name in self.restored else replace(self, restored=(*self.restored, name))

    def with_text(self, text: str) -> Journal:
        return replace(self, old_text=text)

    def with_sequence(self, workers: tuple[str, ...]) -> Journal:
        return replace(self, sequence=workers)

    def with_order(self, worker: str, order: Order | None) -> Journal:
        return replace(self, orders={**self.orders, worker: order})

    def begun_at(self, moment: float) -> Journal:
        return self if self.since else replace(self, since=moment)

    def going_back(self, reason: str) -> Journal:
        return replace(self, failure=self.failure or reason)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def journal_from(document: Mapping[str, Any]) -> Journal:
    """Raises `UserError` for what `as_dict` did not make."""
    try:
        return Journal(
            Release(**document["old"]),
            Release(**document["new"]),
            tuple(str(worker) for worker in document["upgraded"]),
            tuple(str(stage) for stage in document["passed"]),
            tuple(str(host) for host in document["hosts"]),
            str(document["failure"]),
            float(document["since"]),
            tuple(str(name) for name in document.get("restored", ())),  # an older version's has none of these
            str(document.get("old_text", "")),
            tuple(str(worker) for worker in document.get("sequence", ())),
            {worker: None if order is None else dict(order) for worker, order in document.get("orders", {}).items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"the upgrade's journal is damaged ({error!r}); delete it and run `generator up`") from error
