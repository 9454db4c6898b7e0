"""How the Redis of several hosts change one after the other: each in step before the next one.

A replica that cannot log in to its master looks healthy, and Sentinel may even promote it: then it lacks what was
acknowledged meanwhile. So no host may follow before the one in front of it is in step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from generator import processes
from generator.errors import ToolError, Unhealthy

if TYPE_CHECKING:
    from generator.ops.cluster import Place

CLI: Final = """\
secrets=/run/secrets; port=$(awk '$1 ~ /^(tls-)?port$/ && $2 > 0 { print $2; exit }' /etc/appliance-redis/redis.conf)
tls=(); [ ! -e $secrets/ca.crt ] || tls=(--tls --cacert $secrets/ca.crt)
cli() { redis-cli "${tls[@]}" -p "$port" --no-auth-warning --user "$@"; }
"""
"""For `inside`: `cli USER COMMAND` asks that host's Redis. Passwords go through standard input or a mounted secret: an
argument would be seen by every user of the host."""
_FACTS = f"""\
set -eu; {CLI}
REDISCLI_AUTH=$(cat $secrets/redis_password); export REDISCLI_AUTH
cli appliance INFO replication
"""
IN_STEP_SECONDS = 60.0
ASK_SECONDS = 30.0


def inside(place: Place, script: str, service: str = "redis") -> list[str]:
    """The argument list that has a bash in that running service's container run `script`."""
    return place.compose("exec", "--no-TTY", service, "bash", "-o", "pipefail", "-c", script)


def wait_in_step(place: Place, on_line: Callable[[str], None]) -> None:
    """Until its Redis is the master, or has all that the master has. Raises Unhealthy when that takes too long."""
    if not is_replicated(place):
        return
    on_line("waiting for its Redis to be in step")
    end, said = time.monotonic() + IN_STEP_SECONDS, ""
    while time.monotonic() < end:
        try:
            facts = dict(
                line.strip().split(":", 1)
                for line in processes.run(inside(place, _FACTS), timeout=ASK_SECONDS).splitlines()
                if ":" in line
            )
        except ToolError as error:
            said = str(error)
        else:
            if facts.get("role") == "master" or facts.get("master_link_status") == "up":
                return
            said = f"its link to the master, {facts.get('master_host')}:{facts.get('master_port')}, is down"
        time.sleep(0.5)
    raise Unhealthy(
        f"the Redis of {place.host.name} is not in step after {IN_STEP_SECONDS:g} s: {said}. No host after it "
        "was touched. If that one does not run: `up --host` it; else `logs redis --host` of both says more"
    )


def is_replicated(place: Place) -> bool:
    return bool(place.host.queue and place.host.queue.sentinels)
