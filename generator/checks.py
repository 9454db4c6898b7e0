"""What needs two values of a cluster.yaml to judge. Pure: `check` returns every contradiction with its line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date
from difflib import get_close_matches
from ipaddress import IPv4Address
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from generator import checks_logs, checks_monitoring, ports
from generator.errors import Problem
from generator.explain import did_you_mean
from generator.load import Loaded, by_line
from generator.marks import Path
from generator.model import (
    LETS_ENCRYPT,
    LogDriver,
    ModelKind,
    Role,
    StorageDriver,
    TlsMode,
    Variant,
    VrrpMode,
    WebuiEngine,
    plain_model,
)

REQUIRED_ROLES = (Role.GATEWAY, Role.CONTROL, Role.QUEUE, Role.WORKER)
LEASE_BEATS = 2.5
"""A lease outlives two lost heartbeats; with fewer, one late beat hands a running job to a second worker."""
ANY = IPv4Address(0)


def check(loaded: Loaded) -> list[Problem]:
    """Empty when the cluster can be planned."""
    return by_line([problem for rule in RULES for problem in rule(loaded)])


def _hosts_with(loaded: Loaded, role: Role) -> list[str]:
    return [name for name, host in loaded.cluster.hosts.items() if role in host.roles]


def _where(loaded: Loaded, path: Path) -> str:
    return f"line {loaded.line(path)}"


# --- addresses -----------------------------------------------------------------------------------------------------


def _duplicate_addresses(loaded: Loaded) -> Iterator[Problem]:
    seen: dict[IPv4Address, str] = {}
    for name, host in loaded.cluster.hosts.items():
        first = seen.setdefault(host.address, name)
        if first != name:
            where = _where(loaded, ("hosts", first, "address"))
            hint = f"also the address of {first} ({where}); give each host its own"
            yield loaded.problem(("hosts", name, "address"), hint)


def _unusable_addresses(loaded: Loaded) -> Iterator[Problem]:
    several = len(loaded.cluster.hosts) > 1
    for name, host in loaded.cluster.hosts.items():
        path: Path = ("hosts", name, "address")
        if why := _why_unusable(host.address):
            yield loaded.problem(path, f"{why}; write the address other hosts reach {name} at")
        elif several and host.address.is_loopback:
            yield loaded.problem(path, f"a loopback address, which no other host can reach; write {name}'s own")
    for key, address in (("vip", loaded.cluster.gateway.vip), ("bind", loaded.cluster.gateway.bind)):
        if address is None or (key == "bind" and address == ANY):
            continue
        why = _why_unusable(address) or ("a loopback address" if key == "vip" and address.is_loopback else "")
        if why:
            yield loaded.problem(("gateway", key), f"{why}; write an address clients can connect to")


def _why_unusable(address: IPv4Address) -> str:
    if address.is_unspecified:
        return "stands for every address of a machine"
    if address.is_multicast:
        return "a multicast address"
    if address.is_reserved:  # 240.0.0.0/4, with the broadcast address
        return "a reserved address"
    return ""


def _outside_subnet(loaded: Loaded) -> Iterator[Problem]:
    subnet = loaded.cluster.network.subnet
    if subnet is None:
        return
    ends = (subnet.network_address, subnet.broadcast_address) if subnet.prefixlen < 31 else ()
    addresses: list[tuple[Path, IPv4Address]] = [
        (("hosts", name, "address"), host.address) for name, host in loaded.cluster.hosts.items()
    ]
    # An address that others move may lie anywhere.
    if loaded.cluster.gateway.vip is not None and loaded.cluster.gateway.vrrp.mode is VrrpMode.KEEPALIVED:
        addresses.append((("gateway", "vip"), loaded.cluster.gateway.vip))
    for path, address in addresses:
        if address not in subnet:
            where = _where(loaded, ("network", "subnet"))
            yield loaded.problem(path, f"outside network.subnet {subnet} ({where}); correct one of the two")
        elif address in ends:
            yield loaded.problem(path, f"is the network or broadcast address of {subnet}; choose another")


def _virtual_address(loaded: Loaded) -> Iterator[Problem]:
    gateway = loaded.cluster.gateway
    gateways = _hosts_with(loaded, Role.GATEWAY)
    if gateway.vip is None:
        return
    path: Path = ("gateway", "vip")
    ours = gateway.vrrp.mode is VrrpMode.KEEPALIVED
    if ours and len(gateways) < 2:
        hint = f"needs two hosts with the role gateway, there is {len(gateways)}; add one or remove vip"
        yield loaded.problem(path, hint)
    if ours and loaded.cluster.network.subnet is None:
        yield loaded.problem(path, "needs network.subnet, the network it lives in; add it, like 192.168.1.0/24")
    for name, host in loaded.cluster.hosts.items():
        if host.address == gateway.vip:
            where = _where(loaded, ("hosts", name, "address"))
            yield loaded.problem(path, f"is the address of {name} ({where}); choose one that no machine has")


def _vrrp(loaded: Loaded) -> Iterator[Problem]:
    gateway = loaded.cluster.gateway
    unused = "without gateway.vip" if gateway.vip is None else "with mode none"
    if gateway.vip is not None and gateway.vrrp.mode is VrrpMode.KEEPALIVED:
        return
    for key in ("interface", "router_id"):
        if getattr(gateway.vrrp, key) is not None:
            yield loaded.problem(("gateway", "vrrp", key), f"is not used {unused}; remove it")


def _bind(loaded: Loaded) -> Iterator[Problem]:
    bind, gateways = loaded.cluster.gateway.bind, _hosts_with(loaded, Role.GATEWAY)
    if bind != ANY and len(gateways) > 1:
        hint = f"one address cannot be bound on {len(gateways)} gateways; remove bind, or write 0.0.0.0"
        yield loaded.problem(("gateway", "bind"), hint)


# --- ports ---------------------------------------------------------------------------------------------------------


def _port_clashes(loaded: Loaded) -> Iterator[Problem]:
    """One problem per pair of settings, however many hosts it hits."""
    clashes: dict[tuple[Path, str], tuple[int, list[str]]] = {}
    for name, publications in ports.published(loaded.cluster):
        taken: dict[int, list[ports.Publication]] = {}
        for late in publications:
            for early in taken.setdefault(late.port, []):
                if ANY in (late.bind, early.bind) or late.bind == early.bind:
                    # Blame a value that stands in the file, not a default.
                    swap = late.setting not in loaded.marks and early.setting != () and early.setting in loaded.marks
                    blamed, other = (early, late) if swap else (late, early)
                    clashes.setdefault((blamed.setting, other.owner), (late.port, []))[1].append(name)
            taken[late.port].append(late)
    for (setting, owner), (port, hosts) in clashes.items():
        where = hosts[0] + (f" and {len(hosts) - 1} more" if len(hosts) > 1 else "")
        yield loaded.problem(setting, f"port {port} is also taken by {owner} on {where}; choose another")


def _port_range(loaded: Loaded) -> Iterator[Problem]:
    first = loaded.cluster.worker.first_port
    counts = {name: ports.worker_count(host) for name, host in loaded.cluster.hosts.items()}
    most = max(counts, key=lambda name: counts[name])
    if first + counts[most] - 1 > 65535:
        hint = f"{most} has {counts[most]} workers, whose ports would go past 65535; choose a lower one"
        yield loaded.problem(("worker", "first_port"), hint)


# --- roles and hosts -----------------------------------------------------------------------------------------------


def _missing_roles(loaded: Loaded) -> Iterator[Problem]:
    for role in REQUIRED_ROLES:
        if not _hosts_with(loaded, role):
            yield loaded.problem(("hosts",), f"no host has the role {role.value}; add it to one")


def _repeated_roles(loaded: Loaded) -> Iterator[Problem]:
    for name, host in loaded.cluster.hosts.items():
        for index, role in enumerate(host.roles):
            if role in host.roles[:index]:
                yield loaded.problem(("hosts", name, "roles", index), "given twice; remove one")


def _sentinels(loaded: Loaded) -> Iterator[Problem]:
    hosts = _hosts_with(loaded, Role.QUEUE)
    count = len(hosts)
    if count and count % 2 == 0:
        last = hosts[-1]
        hint = f"an even number of Sentinels ({count}) cannot outvote a lost half; give the role to 1, 3 or 5 hosts"
        index = loaded.cluster.hosts[last].roles.index(Role.QUEUE)
        yield loaded.problem(("hosts", last, "roles", index), hint)
    quorum, majority = loaded.cluster.queue.sentinel_quorum, count // 2 + 1
    if count and quorum is not None and not majority <= quorum <= count:
        bounds = f"{majority}" if majority == count else f"{majority} to {count}"
        hint = f"with {count} hosts of role queue the quorum must be {bounds}; correct or remove it"
        yield loaded.problem(("queue", "sentinel_quorum"), hint)


def _workers(loaded: Loaded) -> Iterator[Problem]:
    variant = loaded.cluster.images.webui
    for name, host in loaded.cluster.hosts.items():
        path: Path = ("hosts", name)
        if Role.WORKER not in host.roles:
            for key, given in (("gpus", host.gpus), ("cpu_workers", host.cpu_workers)):
                if given:
                    yield loaded.problem((*path, key), "only a worker uses this; add worker to the roles, or remove it")
        elif not host.gpus and not host.cpu_workers:
            need = "gpus" if variant is Variant.CUDA else "cpu_workers"
            yield loaded.problem((*path, "roles"), f"a worker without {need}; add {need}, or remove the role worker")
        elif loaded.cluster.webui.engine is WebuiEngine.A1111:
            if host.gpus and host.cpu_workers:
                yield loaded.problem((*path, "cpu_workers"), "beside gpus there are none; remove one of the two")
        elif variant is Variant.CUDA and host.cpu_workers:
            hint = "images.webui is cuda, which runs one worker per entry of gpus; remove cpu_workers, or choose cpu"
            yield loaded.problem((*path, "cpu_workers"), hint)
        elif variant is not Variant.CUDA and host.gpus:
            hint = f"images.webui is {variant.value}, which uses no GPU; write cpu_workers instead, or choose cuda"
            yield loaded.problem((*path, "gpus"), hint)


def _webui(loaded: Loaded) -> Iterator[Problem]:
    webui = loaded.cluster.webui
    if webui.engine is WebuiEngine.OWN:
        for key in ("image", "url"):
            if getattr(webui, key) is not None:
                yield loaded.problem(("webui", key), "is not used with engine own; remove it, or write engine: a1111")
        return
    if (webui.image is None) == (webui.url is None):
        yield loaded.problem(("webui", "engine"), "needs either image or url beside it; write one of the two")
    elif webui.url is not None:
        yield from _foreign_url(loaded, webui.url)
    elif webui.auth_file is not None:
        hint = "is used with url only: what runs from image can be reached by its own agent alone; remove it"
        yield loaded.problem(("webui", "auth_file"), hint)


def _foreign_url(loaded: Loaded, url: str) -> Iterator[Problem]:
    """Two agents on one A1111 would stop each other's work."""
    counts = [ports.worker_count(loaded.cluster.hosts[name]) for name in _hosts_with(loaded, Role.WORKER)]
    needed = {"{address}": len(counts) > 1, "{index}": max(counts, default=0) > 1}
    for part, several in needed.items():
        if several and part not in url:
            whose = "hosts with workers" if part == "{address}" else "workers on one host"
            hint = f"the same for several {whose}, each of which needs an A1111 of its own; put {part} into it"
            yield loaded.problem(("webui", "url"), hint)
    if set("{}") & set(url.replace("{address}", "").replace("{index}", "")):
        yield loaded.problem(("webui", "url"), "only {address} and {index} can stand in braces; correct it")
    elif (taken := _own_port(loaded, url)) is not None:
        hint = f"port {taken} is that of our own worker there (worker.first_port); have A1111 listen on another"
        yield loaded.problem(("webui", "url"), hint)


def _own_port(loaded: Loaded, url: str) -> int | None:
    """One that an agent publishes on the very address where it would look for A1111. A single host publishes none."""
    cluster = loaded.cluster
    for host in cluster.hosts.values() if len(cluster.hosts) > 1 else ():
        count = ports.worker_count(host) if Role.WORKER in host.roles else 0
        for index in range(count):
            parts = urlsplit(url.replace("{address}", str(host.address)).replace("{index}", str(index)))
            with suppress(ValueError):  # of a port that is none
                port = parts.port or {"http": 80, "https": 443}[parts.scheme]
                first = cluster.worker.first_port
                if parts.hostname == str(host.address) and first <= port < first + count:
                    return port
    return None


def _duplicate_gpus(loaded: Loaded) -> Iterator[Problem]:
    seen: dict[str, Path] = {}
    for name, host in loaded.cluster.hosts.items():
        for index, gpu in enumerate(host.gpus):
            path: Path = ("hosts", name, "gpus", index, "uuid")
            first = seen.setdefault(gpu.uuid, path)
            if first != path:
                hint = f"also listed for {first[1]} ({_where(loaded, first)}); run nvidia-smi -L on {name}"
                yield loaded.problem(path, hint)


def _role_needs(loaded: Loaded) -> Iterator[Problem]:
    dashboards, logs = _hosts_with(loaded, Role.DASHBOARDS), _hosts_with(loaded, Role.LOGS)
    elastic = loaded.cluster.logs.driver is LogDriver.ELASTIC
    if dashboards and not _hosts_with(loaded, Role.METRICS):
        roles = loaded.cluster.hosts[dashboards[0]].roles
        path: Path = ("hosts", dashboards[0], "roles", roles.index(Role.DASHBOARDS))
        yield loaded.problem(path, "no host has the role metrics, so there is nothing to show; add it to one")
    if elastic and not logs:
        yield loaded.problem(("logs", "driver"), "no host has the role logs; add it to one, or write none")
    if logs and not elastic:
        roles = loaded.cluster.hosts[logs[0]].roles
        hint = "logs.driver is none, so nothing would arrive here; write driver: elastic under logs, or remove the role"
        yield loaded.problem(("hosts", logs[0], "roles", roles.index(Role.LOGS)), hint)


# --- times ---------------------------------------------------------------------------------------------------------


def _timeouts(loaded: Loaded) -> Iterator[Problem]:
    orders = (
        ("job_seconds", "<", "stop_grace_seconds", "or Docker kills a job that could still end"),
        ("job_seconds", "<=", "proxy_seconds", "or the gateway hangs up on a client whose job still runs"),
        ("drain_seconds", "<", "stop_grace_seconds", "or Docker kills a worker before it has drained"),
        ("no_progress_seconds", "<", "job_seconds", "or a hung job is never noticed before its time is up"),
    )
    timeouts = loaded.cluster.timeouts
    for small, sign, large, reason in orders:
        low, high = getattr(timeouts, small), getattr(timeouts, large)
        if low < high or (sign == "<=" and low == high):
            continue
        words = "less than" if sign == "<" else "at most"
        # A value from the file is the one to blame, not a default.
        if ("timeouts", small) in loaded.marks:
            hint = f"must be {words} {large} ({high}), {reason}"
            yield loaded.problem(("timeouts", small), hint)
        else:
            words = "more than" if sign == "<" else "at least"
            yield loaded.problem(("timeouts", large), f"must be {words} {small} ({low}), {reason}")


def _lease(loaded: Loaded) -> Iterator[Problem]:
    queue = loaded.cluster.queue
    if queue.lease_seconds < LEASE_BEATS * queue.beat_seconds:
        key = "beat_seconds" if ("queue", "lease_seconds") not in loaded.marks else "lease_seconds"
        hint = (
            f"a lease of {queue.lease_seconds:g} s is less than {LEASE_BEATS:g} beats of {queue.beat_seconds:g} s, "
            "so one late heartbeat takes a job from a healthy worker; raise lease_seconds or lower beat_seconds"
        )
        yield loaded.problem(("queue", key), hint)


# --- models, TLS, storage ------------------------------------------------------------------------------------------


def _models(loaded: Loaded) -> Iterator[Problem]:
    models = loaded.cluster.models
    kinds: dict[str, set[ModelKind]] = {}
    first: dict[tuple[ModelKind, str], int] = {}
    for index, model in enumerate(models.available):
        kinds.setdefault(model.name, set()).add(model.kind)
        if (seen := first.setdefault((model.kind, model.name), index)) != index:
            where = _where(loaded, ("models", "available", seen, "name"))
            hint = f"this {model.kind.value} is listed twice ({where}); remove one"
            yield loaded.problem(("models", "available", index, "name"), hint)
    chosen = (
        (ModelKind.CHECKPOINT, models.checkpoint),
        (ModelKind.MOTION_MODULE, models.motion_module),
        (ModelKind.VAE, models.vae),
    )
    for kind, name in chosen:
        if name is None:
            continue
        found = kinds.get(name, set())
        if kind in found:
            continue
        if found:
            others = " and ".join(sorted(other.value for other in found))
            hint = f"models.available lists this as {others}, not as {kind.value}; correct its kind or choose another"
        else:
            same_kind = sorted({model.name for model in models.available if model.kind is kind})
            close = get_close_matches(name, same_kind, n=1)
            known = f"; did you mean {close[0]}?" if close else f" (known: {', '.join(same_kind[:5]) or 'none'})"
            hint = f"no {kind.value} of this name in models.available; add it there or correct the name{known}"
        yield loaded.problem(("models", kind.value), hint)


def _acme(loaded: Loaded) -> Iterator[Problem]:
    gateway = loaded.cluster.gateway
    if gateway.tls.mode is not TlsMode.ACME:
        for key in ("email", "directory"):
            if ("gateway", "tls", key) in loaded.marks:
                hint = f"is not used with mode {gateway.tls.mode.value}; remove it, or write mode: acme"
                yield loaded.problem(("gateway", "tls", key), hint)
        return
    path: Path = ("gateway", "server_name")
    if gateway.server_name == "_":
        hint = "mode acme gets a certificate for one name; write it as gateway.server_name"
        yield loaded.problem(("gateway", "tls", "mode"), hint)
    elif _is_address(gateway.server_name):
        yield loaded.problem(path, "mode acme needs a name, not an address; write the one that clients use")
    if gateway.tls.directory != LETS_ENCRYPT:
        return
    if "." not in gateway.server_name and gateway.server_name != "_":
        yield loaded.problem(path, "Let's Encrypt knows public names only, like video.example.net; write such a one")
    if gateway.http_port != 80:
        yield loaded.problem(("gateway", "http_port"), "Let's Encrypt asks on port 80 only; write 80")


def _is_address(name: str) -> bool:
    try:
        IPv4Address(name)
    except ValueError:
        return False
    return True


def _tls(loaded: Loaded) -> Iterator[Problem]:
    tls = loaded.cluster.gateway.tls
    for key in ("certificate", "key"):
        given = getattr(tls, key) is not None
        if tls.mode is TlsMode.FILES and not given:
            hint = f"files needs {key} as well; add the path of the {key} on the gateway hosts"
            yield loaded.problem(("gateway", "tls", "mode"), hint)
        elif tls.mode is not TlsMode.FILES and given:
            hint = f"is not used with mode {tls.mode.value}; remove it, or write mode: files"
            yield loaded.problem(("gateway", "tls", key), hint)
    if tls.mode is TlsMode.FILES and tls.certificate and tls.key:
        yield from _mounted_folders(loaded, {"certificate": tls.certificate, "key": tls.key})


def _mounted_folders(loaded: Loaded, files: dict[str, str]) -> Iterator[Problem]:
    """The gateway sees the whole folder, to notice when a file in it is replaced."""
    for key, file in files.items():
        path = PurePosixPath(file)
        if ".." in path.parts or len(path.parts) < 4:
            hint = f"the gateway mounts the folder of the {key}; put it into one of its own, like /etc/animatediff-tls"
            yield loaded.problem(("gateway", "tls", key), hint)
        elif path.parts[2:4] == ("letsencrypt", "live"):
            hint = (
                "a link that leads out of its folder, to a file that root alone can read; let a deploy hook of certbot "
                "copy both files into a folder of their own (see the README), or use mode: acme"
            )
            yield loaded.problem(("gateway", "tls", key), hint)


def _storage(loaded: Loaded) -> Iterator[Problem]:
    storage = loaded.cluster.storage
    for driver in (StorageDriver.NFS, StorageDriver.CEPHFS):
        section = getattr(storage, driver.value)
        if storage.driver is driver and section is None:
            yield loaded.problem(("storage", "driver"), f"needs a section storage.{driver.value}; add it")
        elif storage.driver is not driver and section is not None:
            hint = f"is not used with driver {storage.driver.value}; remove it, or write driver: {driver.value}"
            yield loaded.problem(("storage", driver.value), hint)
    users = [name for name, host in loaded.cluster.hosts.items() if {Role.WORKER, Role.CONTROL} & set(host.roles)]
    if storage.driver is StorageDriver.LOCAL and len(users) > 1:
        hint = f"{len(users)} hosts would each keep jobs on a disk that the others cannot read; use nfs or cephfs"
        yield loaded.problem(("storage", "driver"), hint, value=storage.driver.value)


# --- cost ----------------------------------------------------------------------------------------------------------


def _prices(loaded: Loaded) -> Iterator[Problem]:
    cost, hosts = loaded.cluster.cost, loaded.cluster.hosts
    named = {
        "gpu_prices": [("model", price.model, plain_model(price.model), price.as_of) for price in cost.gpu_prices],
        "host_prices": [("host", price.host, price.host, price.as_of) for price in cost.host_prices],
    }
    for table, prices in named.items():
        first: dict[str, int] = {}
        for index, (key, name, plain, as_of) in enumerate(prices):
            path: Path = ("cost", table, index)
            if (seen := first.setdefault(plain, index)) != index:
                where = _where(loaded, ("cost", table, seen, key))
                yield loaded.problem((*path, key), f"has a price already ({where}); remove one")
            elif key == "host" and name not in hosts:
                hint = f"no host of this name{did_you_mean(name, hosts)}; correct it, or remove the price"
                yield loaded.problem((*path, key), hint)
            elif key == "host" and not ports.EXPORTED_ROLES & set(hosts[name].roles):
                roles = ", ".join(sorted(role.value for role in ports.EXPORTED_ROLES))
                yield loaded.problem(
                    (*path, key), f"has none of the roles {roles}, so nobody tells its price; remove it"
                )
            if not _is_day(as_of):
                yield loaded.problem((*path, "as_of"), "no day of the calendar; correct it")
    if cost.gpu_prices and not any(host.gpus for host in hosts.values()):
        yield loaded.problem(("cost", "gpu_prices"), "no host has GPUs; use host_prices instead")


def _is_day(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


RULES: tuple[Callable[[Loaded], Iterator[Problem]], ...] = (
    _duplicate_addresses,
    _unusable_addresses,
    _outside_subnet,
    _virtual_address,
    _vrrp,
    _bind,
    _port_clashes,
    _port_range,
    _missing_roles,
    _repeated_roles,
    _sentinels,
    _workers,
    _webui,
    _duplicate_gpus,
    _role_needs,
    _timeouts,
    _lease,
    _models,
    _tls,
    _acme,
    _storage,
    _prices,
    *checks_monitoring.RULES,
    *checks_logs.RULES,
)
