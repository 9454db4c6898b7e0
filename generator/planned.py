"""What `plan` makes: frozen data with every number, name and address fixed. The templates read nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from generator.limits import Limits
from generator.planned_logs import LogStorePlan, ShipperPlan
from generator.planned_metrics import DashboardsPlan, MetricsPlan

UID = 10001
"""Who every process of ours runs as; owner of the secret files and of the volumes."""


@dataclass(frozen=True)
class WorkerPlan:
    """One GPU (or CPU slot): a `webui-N` and the `agent-N` that feeds it."""

    index: int
    worker: str
    gpu_uuid: str | None
    port: int
    foreign_url: str = ""
    """Of the A1111 that the agent drives; empty: our own webui."""

    @property
    def webui(self) -> str:
        return f"webui-{self.index}"

    @property
    def agent(self) -> str:
        return f"agent-{self.index}"

    @property
    def probed(self) -> str:
        """The service that answers the controller: a foreign A1111 would not understand it."""
        return self.agent if self.foreign_url else self.webui


@dataclass(frozen=True)
class AcmePlan:
    """A certificate from an ACME directory (RFC 8555, http-01)."""

    directory: str
    email: str
    """Empty: an account without one."""
    name: str
    siblings: tuple[str, ...]
    """`address:port` of the other gateways' plain HTTP. Any of them may be shown a challenge that is another's."""


@dataclass(frozen=True)
class CertificatePlan:
    """What nginx shows, as paths in its container, and the host's folders that are mounted there.

    Folders, never files: Docker mounts a file by its inode, so one that is renamed into its place would stay unseen.
    """

    chain: str
    key: str
    folders: tuple[tuple[str, str], ...]
    """(on the host, in the container); none with `acme`, which has a volume."""
    acme: AcmePlan | None = None


@dataclass(frozen=True)
class GatewayPlan:
    """What `config/nginx/nginx.conf.j2` and the gateway's compose service need."""

    server_name: str
    bind: str
    http_port: int
    https_port: int
    certificate: CertificatePlan | None
    """None: plain HTTP."""
    own_certificate: bool
    """Whether the generator makes the certificate (self-signed mode)."""
    balance: str
    proxy_timeout_seconds: int
    max_body_bytes: int
    submit_rate_per_second: int
    worker_connections: int
    controller_targets: str
    probe_timeout_seconds: float
    leave_seconds: float
    """How long a gateway that stops says so on /readyz and still answers: until nobody is sent to it any more."""
    grafana: tuple[str, ...] = ()
    """The guards before it, as host:port."""
    grafana_named: bool = False
    """Whether that host is a container's name, which has another address after each start."""

    @property
    def tls(self) -> bool:
        return self.certificate is not None


@dataclass(frozen=True)
class VirtualAddressPlan:
    """What `config/keepalived/keepalived.conf.j2` and the keepalived service need."""

    address: str
    host: str
    own: str
    """Address of this host, from which it speaks to its `peers`, the other gateway hosts."""
    peers: tuple[str, ...]
    port: int
    """Where every gateway answers /readyz in plain HTTP."""
    interface: str
    """Empty: the one that holds `own`."""
    router_id: int
    priority: int


@dataclass(frozen=True)
class QueuePlan:
    """What `config/redis/*.j2` and the redis and sentinel services need."""

    port: int
    announce_address: str
    master_address: str
    master_port: int
    min_replicas: int
    maxmemory_bytes: int
    sentinel_port: int
    quorum: int
    down_after_ms: int
    failover_timeout_ms: int
    parallel_syncs: int
    tls: bool
    sentinel_addresses: tuple[str, ...]

    @property
    def sentinels(self) -> bool:
        return bool(self.sentinel_addresses)

    @property
    def limits(self) -> Limits:
        """Twice `maxmemory`: rewriting the append-only file forks, and the child may come to own every page."""
        return Limits(2.0, 2 * (self.maxmemory_bytes >> 20) + 128, 64)


@dataclass(frozen=True)
class ExporterPlan:
    """What the exporter has to know about its host."""

    workers: int
    gpus: tuple[str, ...]
    """UUIDs, that of worker 0 first."""
    prices: str
    """JSON, see `PriceTable` of the exporter; empty: none is known."""
    aws_credentials: str
    """The file on the host whose exporter alone asks AWS; empty elsewhere."""


@dataclass(frozen=True)
class VolumePlan:
    """One compose volume; `options` are the local driver's, empty for a plain named volume."""

    name: str
    options: dict[str, str]


@dataclass(frozen=True)
class HostPlan:
    """Everything one host runs."""

    name: str
    address: str
    publish: str
    """Address that inner ports are published on; empty when the cluster is one host and publishes none."""
    gateway: GatewayPlan | None
    vip: VirtualAddressPlan | None
    """None where the host is no gateway, or nobody wants a virtual address of us."""
    api: bool
    queue: QueuePlan | None
    workers: tuple[WorkerPlan, ...]
    exporter: ExporterPlan | None
    """None where nothing of ours runs but monitoring."""
    redis_environment: dict[str, str]
    monitored: bool = False
    """Whether some host has the role metrics, and so this one a node-exporter."""
    metrics: MetricsPlan | None = None
    dashboards: DashboardsPlan | None = None
    shipper: ShipperPlan | None = None
    """None where logs stay with Docker."""
    log_store: LogStorePlan | None = None

    @property
    def vendor_images(self) -> dict[str, dict[str, str]]:
        """Profile → service → image that is a vendor's and not built here. What has one profile is of use only
        together; it is left out where an image of it cannot be had."""
        found: dict[str, dict[str, str]] = {}
        if self.dashboards:
            found["grafana"] = {"grafana": self.dashboards.image}
        if self.shipper:
            found["filebeat"] = {"filebeat": self.shipper.image}
        if self.log_store:
            images = {"elasticsearch": self.log_store.elasticsearch_image, "logstash": self.log_store.logstash_image}
            found["elasticsearch"] = images
        return found

    @property
    def runs_storage(self) -> bool:
        return self.api or bool(self.workers)


@dataclass(frozen=True)
class ForeignPlan:
    """A foreign A1111 in the place of our webui. `image` empty: it runs elsewhere; `auth_file` empty: none."""

    image: str
    auth_file: str


@dataclass(frozen=True)
class ClusterPlan:
    """What all hosts share."""

    name: str
    images: dict[str, str]
    images_from_registry: bool
    variant: str
    device: str
    engine: str
    checkpoint: str
    motion_module: str
    vae: str
    """Empty: the checkpoint's own."""
    make_demo_models: bool
    create_storage: bool
    volumes: tuple[VolumePlan, ...]
    queue_environment: dict[str, str]
    api_environment: dict[str, str]
    stop_grace_seconds: int
    drain_seconds: int
    no_progress_seconds: int
    load_seconds: int
    decode_seconds: int
    encode_seconds: int
    redis_replicas: int
    redis_tls: bool
    """Redis and Sentinel speak TLS, with certificates of the cluster's own CA: wherever there are several hosts."""
    cuda_allocator: str
    threads: int
    step_seconds: float
    checkpoint_seconds: int
    dtype: str
    model_cache_gib: float
    webui_limits: Limits
    article_names: bool
    """The exporters tell the article's names for metrics, too."""
    api_auth_file: str = ""
    """Users of the nodes themselves; empty: none but the cluster's own parts."""
    foreign: ForeignPlan | None = None
    uid: int = UID
    limits: dict[str, Limits] = field(
        default_factory=lambda: {
            "gateway": Limits(2.0, 512, 256),
            "controller": Limits(1.0, 256, 64),
            "acme": Limits(1.0, 256, 64),
            "keepalived": Limits(0.5, 64, 64),
            "api": Limits(2.0, 512, 128),
            "agent": Limits(1.0, 256, 64),
            # It holds a whole video, as text and as bytes, before it writes it.
            "agent-a1111": Limits(1.0, 1024, 64),
            # Two threads for each GPU.
            "exporter": Limits(0.5, 256, 128),
            "sentinel": Limits(0.5, 128, 64),
            "storage-init": Limits(1.0, 128, 32),
            "alertmanager": Limits(0.5, 256, 64),
            "node-exporter": Limits(0.5, 128, 64),
            "redis-exporter": Limits(0.5, 128, 64),
            "blackbox-exporter": Limits(0.5, 128, 64),
            "relay": Limits(0.5, 128, 32),
            "grafana": Limits(1.0, 512, 256),
            "guard": Limits(0.5, 128, 64),
            "filebeat": Limits(0.5, 256, 64),
            # Half of the memory is its heap.
            "logstash": Limits(1.0, 1536, 512),
            "elasticsearch-setup": Limits(0.5, 128, 32),
        }
    )


@dataclass(frozen=True)
class Plan:
    """The whole cluster, ready to be printed or rendered."""

    cluster: ClusterPlan
    hosts: tuple[HostPlan, ...]
    addresses: tuple[str, ...]
    """Addresses that belong to no host alone: the gateways' virtual one."""
    notices: tuple[str, ...]
    """What was asked for and is not rendered (yet): to be told, never swallowed."""

    @cached_property
    def by_name(self) -> dict[str, HostPlan]:
        return {host.name: host for host in self.hosts}
