"""What Redis and Sentinel know each other by: another password, or another CA, for all of them at once.

One after the other they could not: the first with a new one would be alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from generator import processes
from generator.errors import ToolError, UserError
from generator.ops.cluster import Place, bring
from generator.ops.replication import ASK_SECONDS, inside, is_replicated, wait_in_step
from generator.progress import Progress

SHARED: Final = {"redis": ("redis_auth.conf", "ca.crt"), "sentinel": ("sentinel_auth.conf", "ca.crt")}
"""Service → the secrets by which it knows its like on the other hosts: with another one it is alone."""
REST_SECONDS = 120.0


def change_together(targets: Sequence[Place], everywhere: Sequence[Place], progress: Progress) -> None:
    """Where Redis or Sentinel run with other shared secrets than are laid out, rest them on all hosts and start them
    with the new ones: some seconds without a queue, in which submissions wait. Nothing else is started."""
    queues = [place for place in everywhere if is_replicated(place)]
    if not any(_has_changed(place) for place in queues):
        return
    left_out = [place.host.name for place in queues if place not in targets]
    if left_out:
        raise UserError(
            f"the secrets that Redis and Sentinel share have changed, also for {', '.join(left_out)}: "
            "`python -m generator up` without --host, which changes all hosts together"
        )
    with progress.task("the queue's shared secrets") as task:
        for place in queues:
            task.update(f"copying to {place.host.name}")
            bring(place)
        _rest(queues, task.update)
        for service in ("redis", "sentinel"):  # the Sentinels last: else they would look for masters in vain
            for place in queues:
                task.update(f"start {service} on {place.host.name}")
                processes.run(place.compose("up", "--detach", "--no-deps", service), timeout=REST_SECONDS)
        for place in queues:
            wait_in_step(place, task.update)
        task.finish("in use on all hosts")


def _rest(queues: Sequence[Place], on_line: Callable[[str], None]) -> None:
    """The Sentinels first: nobody is to be promoted while the Redis go. Where one cannot be reached, as before."""
    try:
        for service in ("sentinel", "redis"):
            for place in queues:
                on_line(f"stop {service} on {place.host.name}")
                processes.run(place.compose("stop", service), timeout=REST_SECONDS)
    except BaseException:
        for service in ("redis", "sentinel"):
            for place in queues:
                with suppress(ToolError):
                    processes.run(place.compose("start", service), timeout=REST_SECONDS)
        raise


def _has_changed(place: Place) -> bool:
    """Whether a running service of the place has other shared secrets than its folder."""
    for service, names in SHARED.items():
        laid_out = {name: place.folder / "secrets" / name for name in names}
        expected = {
            name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in laid_out.items() if path.exists()
        }
        script = f"cd /run/secrets && sha256sum {' '.join(expected)}"
        try:
            lines = processes.run(inside(place, script, service), timeout=ASK_SECONDS).splitlines()
        except ToolError:  # it does not run: it will start with what is laid out
            continue
        if any(expected[name] != digest for digest, name in (line.split(maxsplit=1) for line in lines)):
            return True
    return False
