"""The cluster's secrets: made once, one file each, kept beside cluster.yaml and laid out for each host.

Pure description first (`SECRETS`: what exists and how it is derived), the disk after it. Each derived file
(Redis ACL, nginx include …) follows from the plain ones, so rotating one rewrites exactly what depends on it.
"""

from __future__ import annotations

import fcntl
import os
import secrets as random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from generator import certificate_files, secret_files, secret_marks
from generator import keys as key_list
from generator.errors import UserError
from generator.keys import ALERTS_NAME, OWN_NAME, ApiKey, KeyRole, digest_of
from generator.logs_access import USERS_FILE, users_file
from generator.monitoring_access import WEB_FILE, redis_exporter_file, web_file
from generator.planned import UID, HostPlan, Plan
from generator.redis_access import access_files

STORE = "secrets"
Values = dict[str, bytes]


def _token() -> bytes:
    """256 random bits, in letters that need no quoting anywhere."""
    return random.token_urlsafe(32).encode()


PLAIN: Mapping[str, Callable[[], bytes]] = {
    "api_key": _token,
    "cluster_token": _token,
    "redis_password": _token,
    "redis_replica_password": _token,
    "redis_sentinel_password": _token,
    "redis_exporter_password": _token,
    "monitoring_password": _token,
    "alerts_key": _token,
    "grafana_admin_password": _token,
    "grafana_secret_key": _token,
    "logs_password": _token,
    "logs_setup_password": _token,
    "marks_key": _token,
}
"""What is random; everything else follows from it."""

MARKS_KEY = "marks_key"
"""For `secret_marks` alone. A cluster of an earlier release has none before its secrets are laid out again."""

API_KEYS = "api_keys"

MONITORING, LOGS = "monitoring-", "logs-"
"""What the names of the certificates of hosts' monitoring and logs begin with. Both are shown by clients, too."""

LOCK_SECONDS = 30.0
"""Longer than a few that each lay out a large cluster."""


@dataclass(frozen=True)
class Store:
    """The folder that holds the cluster's secrets."""

    folder: Path

    @property
    def authority(self) -> Path | None:
        """The cluster's own CA certificate, where it has one."""
        return self.folder / "ca.crt" if (self.folder / "ca.crt").exists() else None

    def create_missing(
        self,
        server_names: tuple[str, ...],
        *,
        tls: bool,
        redis: Mapping[str, tuple[str, ...]] | None = None,
        monitoring: Mapping[str, tuple[str, ...]] | None = None,
        logs: Mapping[str, tuple[str, ...]] | None = None,
    ) -> list[str]:
        """Make what does not exist yet and return its names. Nothing random is ever replaced; a certificate is, when
        its names have changed or it ends soon. `tls`: the gateways'; `redis`, `monitoring`, `logs`: those of hosts, by
        names.
        """
        wanted = {"tls": server_names} if tls else {}
        wanted |= {f"redis-{host}": names for host, names in (redis or {}).items()}
        wanted |= {f"{MONITORING}{host}": names for host, names in (monitoring or {}).items()}
        wanted |= {f"{LOGS}{host}": names for host, names in (logs or {}).items()}
        with secret_files.told(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._one_at_a_time():
            made = [name for name in PLAIN if secret_files.create(self.folder / name, PLAIN[name])]
            both_ways = frozenset(name for name in wanted if name.startswith((MONITORING, LOGS)))
            return made + certificate_files.keep(self.folder, wanted, also_client=both_ways)

    def rotate(self, name: str) -> None:
        """Replace one plain secret; lay the hosts' copies out again afterwards."""
        if name not in PLAIN:
            raise UserError(f'"{name}" is not a secret that can be rotated; one of: {", ".join(PLAIN)}')
        with self._one_at_a_time():
            secret_files.replace(self.folder / name, PLAIN[name]())

    def api_keys(self) -> tuple[ApiKey, ...]:
        """People's keys; the generator's own is not among them."""
        path = self.folder / API_KEYS
        with secret_files.told(self.folder):
            text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
            return key_list.parse(text, str(path))

    def add_api_key(self, name: str, role: KeyRole) -> str:
        """Make somebody a key and return it; only its hash is kept."""
        key = _token()
        with self._one_at_a_time():
            made = ApiKey(name, role, digest_of(key), date.today().isoformat())
            self._keep_api_keys(key_list.with_added(self.api_keys(), made))
        return key.decode()

    def revoke_api_key(self, name: str) -> None:
        with self._one_at_a_time():
            self._keep_api_keys(key_list.without(self.api_keys(), name))

    def _keep_api_keys(self, keys: tuple[ApiKey, ...]) -> None:
        secret_files.replace(self.folder / API_KEYS, key_list.text_of(keys).encode())

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Two that change something together must not lose each other's key, nor mix a pair of two. Not to be nested;
        the lock ends with its process."""
        with secret_files.told(self.folder):
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                _lock(descriptor, self.folder)
                yield
            finally:
                os.close(descriptor)

    def read(self) -> Values:
        with secret_files.told(self.folder):
            wanted = [name for name in PLAIN if name != MARKS_KEY or (self.folder / name).exists()]
            values = {name: (self.folder / name).read_bytes() for name in wanted}
            made = ("tls.*", "redis-*.*", f"{MONITORING}*.*", f"{LOGS}*.*")
            for path in (self.folder / "ca.crt", *(path for pattern in made for path in self.folder.glob(pattern))):
                if path.exists():
                    values[path.name] = path.read_bytes()
        return values | {API_KEYS: key_list.text_of(self.api_keys()).encode()}

    def lay_out(self, plan: Plan, out: Path, *, uid: int = UID) -> None:
        """`lay_out` of what is here now: nobody changes it meanwhile, or lays out something older afterwards."""
        with self._one_at_a_time():
            secret_files.create(self.folder / MARKS_KEY, PLAIN[MARKS_KEY])
            lay_out(plan, out, self.read(), uid=uid)


def for_host(host: HostPlan, values: Values) -> Values:
    """The secret files of one host: only those its services mount."""
    wanted: Values = {}
    if host.exporter:  # the exporter's and everybody's; where there is none, there is nothing of ours
        wanted["redis_password"] = values["redis_password"]
    if host.exporter or host.metrics or host.dashboards:
        wanted["cluster_token"] = values["cluster_token"]
    if host.api:
        own = {OWN_NAME: "api_key", **({ALERTS_NAME: "alerts_key"} if host.monitored else {})}
        lines = [ApiKey(name, KeyRole.OPERATOR, digest_of(values[key])).line for name, key in own.items()]
        wanted[API_KEYS] = "".join(lines).encode() + values[API_KEYS]
    if host.gateway:
        wanted["cluster_token.nginx"] = nginx_header(values["cluster_token"])
        if host.gateway.own_certificate and "tls.crt" in values:
            # In a folder of their own, which nginx sees as a whole: a renewed certificate needs no new container.
            wanted |= {f"tls/{name}": values[name] for name in ("tls.crt", "tls.key")}
    if host.queue:
        wanted |= _redis_files(host, values)
    return wanted | _monitoring_files(host, values) | _logs_files(host, values) | _tls_files(host, values)


def nginx_header(token: bytes) -> bytes:
    return b'proxy_set_header Authorization "Bearer ' + token + b'";\n'


def _redis_files(host: HostPlan, values: Values) -> Values:
    files = access_files(
        appliance=values["redis_password"].decode(),
        replica=values["redis_replica_password"].decode(),
        sentinel=values["redis_sentinel_password"].decode(),
        replicated=bool(host.queue and host.queue.sentinels),
        exporter=values["redis_exporter_password"].decode() if host.monitored else None,
    )
    return {name: text.encode() for name, text in files.items()}


def _monitoring_files(host: HostPlan, values: Values) -> Values:
    """A host that is only asked knows no more than the password's hash."""
    found: Values = {}
    if host.monitored:
        found[WEB_FILE] = web_file(values["monitoring_password"].decode(), tls=bool(host.publish)).encode()
    if host.metrics:
        password = values["redis_exporter_password"].decode()
        found["redis_exporter.json"] = redis_exporter_file(password, host.metrics.redis_accounts).encode()
        found["alerts_key"] = values["alerts_key"]
    if host.dashboards:
        found |= {name: values[name] for name in ("grafana_admin_password", "grafana_secret_key")}
    if host.metrics or host.dashboards:
        found["monitoring_password"] = values["monitoring_password"]
    return found


def _logs_files(host: HostPlan, values: Values) -> Values:
    if not host.log_store:
        return {}
    reader, setup = values["logs_password"], values["logs_setup_password"]
    users = users_file(reader=reader.decode(), setup=setup.decode())
    return {USERS_FILE: users.encode(), "logs_setup_password": setup}


def _tls_files(host: HostPlan, values: Values) -> Values:
    """What a client of Redis trusts and, on a queue host, what Redis and Sentinel show; the same of the others."""
    found: Values = {}
    uses_redis = "APPLIANCE_REDIS_CA" in host.redis_environment and host.exporter
    own = (
        host.shipper
        or (host.metrics and host.metrics.trusts_own_authority)
        or (host.dashboards and host.dashboards.tls)
    )
    if uses_redis or own:
        found["ca.crt"] = _given(values, "ca.crt")
    if host.queue and host.queue.tls:
        found |= {f"redis.{kind}": _given(values, f"redis-{host.name}.{kind}") for kind in ("crt", "key")}
    if host.monitored and host.publish:
        found |= {f"monitoring.{kind}": _given(values, f"{MONITORING}{host.name}.{kind}") for kind in ("crt", "key")}
    if host.shipper:
        found |= {f"logs.{kind}": _given(values, f"{LOGS}{host.name}.{kind}") for kind in ("crt", "key")}
    return found


def _given(values: Values, name: str) -> bytes:
    if name not in values:
        raise UserError(f"{name}: missing among the secrets; run `python -m generator secrets`")
    return values[name]


def redis_names(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Queue host → what its Redis and Sentinel are called; empty where they speak no TLS."""
    hosts = [host for host in plan.hosts if host.queue and host.queue.tls]
    return {host.name: (host.name, host.address, "redis", "sentinel", "localhost", "127.0.0.1") for host in hosts}


def monitoring_names(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Monitored host → what Prometheus, Alertmanager and the node-exporter there are called; empty without TLS."""
    services = ("prometheus", "alertmanager", "node-exporter", "localhost", "127.0.0.1")
    return {host.name: (host.name, host.address, *services) for host in plan.hosts if host.monitored and host.publish}


def logs_names(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Host → what stands in the certificate that its Filebeat shows, and its Logstash and Elasticsearch where it has
    them. These speak TLS on a single host, too: Elasticsearch wants it for its keys."""
    services = ("elasticsearch", "logstash", "localhost", "127.0.0.1")
    return {
        host.name: (host.name, host.address, *(services if host.log_store else ()))
        for host in plan.hosts
        if host.shipper
    }


def lay_out(plan: Plan, out: Path, values: Values, *, uid: int = UID) -> None:
    """Write each host's `secrets/` folder under `out`: 0600, owned by the user that the containers run as; and beside
    it what tells compose who has an old copy."""
    for host in plan.hosts:
        folder = out / host.name / "secrets"
        with secret_files.told(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            wanted = for_host(host, values)
            _make_inner_folders(folder, wanted, uid)
            for name, content in wanted.items():
                _put(folder / name, content, uid, in_place=name in secret_marks.READ_WHILE_RUNNING)
            for place in [path for path in folder.rglob("*") if not path.is_dir()]:
                if place.relative_to(folder).as_posix() not in wanted:
                    place.unlink()
            _mark(folder.with_name(secret_marks.FILE), wanted, _given(values, MARKS_KEY))


def _put(place: Path, content: bytes, uid: int, *, in_place: bool) -> None:
    """Docker mounts a file by its inode: what is renamed into its place stays unseen by who runs."""
    if not place.exists() or place.read_bytes() != content or place.stat().st_uid != uid:
        write = secret_files.overwrite if in_place and place.exists() else secret_files.replace
        write(place, content, owner=uid)


def _mark(file: Path, wanted: Values, key: bytes) -> None:
    """Open to everybody who may call compose there; an operator's own `.env` stays as closed as it is. Last: cut off
    before, the next run finds it old."""
    there = file.exists()
    text = file.read_text(encoding="utf-8", errors="surrogateescape") if there else ""
    marked = secret_marks.with_marks(text, wanted, key)
    if marked != text:
        content = marked.encode(errors="surrogateescape")
        secret_files.replace(file, content, mode=file.stat().st_mode & 0o777 if there else 0o644)


def _make_inner_folders(folder: Path, names: Iterable[str], uid: int) -> None:
    """A folder that is mounted as a whole has to be open to those who read in it."""
    for inner in {folder / name.rpartition("/")[0] for name in names if "/" in name}:
        inner.mkdir(mode=0o700, exist_ok=True)
        if inner.stat().st_uid != uid:
            os.chown(inner, uid, uid)


def _lock(descriptor: int, folder: Path) -> None:
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise UserError(
                    f"{folder}: another command has been changing the secrets; end it and try again"
                ) from None
            time.sleep(0.05)
