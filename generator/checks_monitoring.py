"""What needs two values of the section `monitoring` to judge; `checks` has the rules among its own."""

from __future__ import annotations

from collections.abc import Iterator

from generator.errors import Problem
from generator.load import Loaded
from generator.marks import Path
from generator.model import Receiver, ReceiverKind, Role, TlsMode

WAIT_BOUNDS = (1, 2, 5, 10, 15, 20, 30, 45, 60, 90, 120, 300, 600, 1800, 3600)
"""The bounds of animatediff_job_wait_seconds, as the queue's scripts count: of others it cannot be told."""
OWN_RECEIVERS = ("appliance", "nobody")
NEEDED = {
    ReceiverKind.WEBHOOK: ("url_file",),
    ReceiverKind.EMAIL: ("to", "sender", "server"),
    ReceiverKind.DINGTALK: ("url_file",),
    ReceiverKind.WECOM: ("url_file",),
}
OPTIONAL = {ReceiverKind.EMAIL: ("username", "secret_file"), ReceiverKind.DINGTALK: ("secret_file",)}
FIELDS = ("url_file", "secret_file", "to", "sender", "server", "username")


def limits(loaded: Loaded) -> Iterator[Problem]:
    """Of the alert about GPU memory, and the SLO's bound."""
    memory, slo = loaded.cluster.monitoring.gpu_memory, loaded.cluster.monitoring.slo
    if memory.low_percent >= memory.high_percent:
        blamed = "low_percent" if ("monitoring", "gpu_memory", "low_percent") in loaded.marks else "high_percent"
        hint = (
            f"low_percent ({memory.low_percent:g}) must be less than high_percent ({memory.high_percent:g}), "
            "or the alert would end and begin all the time"
        )
        yield loaded.problem(("monitoring", "gpu_memory", blamed), hint)
    if slo.wait_seconds not in WAIT_BOUNDS:
        known = ", ".join(map(str, WAIT_BOUNDS))
        yield loaded.problem(("monitoring", "slo", "wait_seconds"), f"is not counted; one of {known}")


def receivers(loaded: Loaded) -> Iterator[Problem]:
    for name, receiver in loaded.cluster.monitoring.receivers.items():
        path: Path = ("monitoring", "receivers", name)
        if name in OWN_RECEIVERS:
            yield loaded.problem(path, "this name is taken by a receiver of the appliance itself; choose another")
        yield from _fields(loaded, path, receiver)
        if (receiver.username is None) != (receiver.secret_file is None) and receiver.kind is ReceiverKind.EMAIL:
            lacking = "username" if receiver.username is None else "secret_file"
            hint = f"kind email needs {lacking} as well; add it, or leave both out"
            yield loaded.problem((*path, "secret_file" if lacking == "username" else "username"), hint)


def _fields(loaded: Loaded, path: Path, receiver: Receiver) -> Iterator[Problem]:
    kind, needed = receiver.kind, NEEDED[receiver.kind]
    for field in FIELDS:
        given = bool(getattr(receiver, field))
        if field in needed and not given:
            yield loaded.problem((*path, "kind"), f"needs {field} as well; add it")
        elif given and field not in (*needed, *OPTIONAL.get(kind, ())):
            yield loaded.problem((*path, field), f"is not used with kind {kind.value}; remove it")


def gateway_name(loaded: Loaded) -> Iterator[Problem]:
    """Alertmanager sends the gateways its key: it has to know whom it speaks to."""
    gateway, path = loaded.cluster.gateway, ("monitoring", "gateway_ca")
    watched = any(Role.METRICS in host.roles for host in loaded.cluster.hosts.values())
    if watched and gateway.tls.mode is TlsMode.FILES and gateway.server_name == "_":
        hint = "with role metrics, files needs a name that stands in the certificate; write it as gateway.server_name"
        yield loaded.problem(("gateway", "tls", "mode"), hint)
    if loaded.cluster.monitoring.gateway_ca is not None and gateway.tls.mode not in (TlsMode.FILES, TlsMode.ACME):
        hint = f"is not used with gateway.tls.mode {gateway.tls.mode.value}; remove it"
        yield loaded.problem(path, hint)


RULES = (limits, receivers, gateway_name)
