"""The shape of `cluster.yaml`: what an operator may write, with types, bounds and defaults.

Everything here is frozen data. What needs two fields to judge lives in `checks`; what follows from the data
(ports, image names, every derived number) lives in `plan`.
"""

from __future__ import annotations

from enum import Enum
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

DNS_LABEL = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"
FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,119}$"
GPU_UUID = r"^GPU-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
ABSOLUTE_PATH = r"^/[A-Za-z0-9._/-]{1,200}$"
REGISTRY = r"^([a-z0-9]([a-z0-9.-]{0,190}[a-z0-9])?(:[0-9]{1,5})?(/[a-z0-9]([a-z0-9._-]{0,60}[a-z0-9])?){0,4})?$"
TAG = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$"
HOST_NAME = r"^[A-Za-z0-9][A-Za-z0-9.-]{0,252}$"
SERVER_NAME = r"^(_|[A-Za-z0-9][A-Za-z0-9.-]{0,252})$"
MOUNT_OPTIONS = r"^[a-z0-9=,.]{1,200}$"
SHA256 = r"^[0-9a-f]{64}$"
ALLOCATOR = r"^[A-Za-z0-9_:,.]{0,200}$"
SOURCE = r"^[!-~]{1,500}$"
IMAGE = r"^[a-z0-9][a-z0-9._/:@-]{0,254}$"
ACME_DIRECTORY = r"^https://[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?/[A-Za-z0-9._/-]{0,200}$"
EMAIL = r"^[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]{1,253}$"
FOREIGN_URL = r"^https?://[A-Za-z0-9.{}-]{1,253}(:[0-9{}a-z]{1,15})?$"
INTERFACE = r"^[A-Za-z0-9_.-]{1,15}$"
GPU_MODEL = r"^[A-Za-z0-9][A-Za-z0-9 ._+-]{0,79}$"
DAY = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
USER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
HOST_PORT = r"^[A-Za-z0-9][A-Za-z0-9.-]{0,252}:[0-9]{1,5}$"
LOGIN = r"^[!-~]{1,200}$"
# What each pattern means in words stands in `explain`; a test holds the two together.
LETS_ENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"

Name = Annotated[str, Field(pattern=DNS_LABEL)]
"""A DNS label: lower case letters, digits and dashes, at most 40 characters."""
FileName = Annotated[str, Field(pattern=FILE_NAME)]
"""A file or folder name without any separator."""
GpuUuid = Annotated[str, Field(pattern=GPU_UUID)]
"""As `nvidia-smi -L` prints it."""
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[int, Field(ge=1, le=86_400)]
AbsolutePath = Annotated[str, Field(pattern=ABSOLUTE_PATH)]
Registry = Annotated[str, Field(pattern=REGISTRY)]
Tag = Annotated[str, Field(pattern=TAG)]
HostName = Annotated[str, Field(pattern=HOST_NAME)]
UserName = Annotated[str, Field(pattern=USER_NAME)]
"""As in the api's key file."""
ServerName = Annotated[str, Field(pattern=SERVER_NAME)]
HostPort = Annotated[str, Field(pattern=HOST_PORT)]
Email = Annotated[str, Field(pattern=EMAIL)]
Percent = Annotated[float, Field(ge=1, le=99.99)]


class Part(BaseModel):
    """Common to every section: no unknown keys, no change after loading. `load` adds: no silent coercion."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_enum_values=False)


class Role(str, Enum):
    """What a host does; one compose template each."""

    GATEWAY = "gateway"
    CONTROL = "control"
    QUEUE = "queue"
    WORKER = "worker"
    METRICS = "metrics"
    DASHBOARDS = "dashboards"
    LOGS = "logs"


class Variant(str, Enum):
    """Which WebUI image the workers run."""

    CUDA = "cuda"
    CPU = "cpu"
    SYNTHETIC = "synthetic"


class TlsMode(str, Enum):
    NONE = "none"
    SELF_SIGNED = "self-signed"
    FILES = "files"
    ACME = "acme"


class Dtype(str, Enum):
    """Precision of the weights. `auto`: fp16 on a GPU, fp32 without."""

    AUTO = "auto"
    FP16 = "fp16"
    BF16 = "bf16"
    FP32 = "fp32"


class WebuiEngine(str, Enum):
    """What makes the videos."""

    OWN = "own"
    A1111 = "a1111"


class Balance(str, Enum):
    COOKIE = "cookie"
    IP_HASH = "ip_hash"
    LEAST_BUSY = "least_busy"


class StorageDriver(str, Enum):
    LOCAL = "local"
    NFS = "nfs"
    CEPHFS = "cephfs"


class VrrpMode(str, Enum):
    """Who holds `gateway.vip`."""

    KEEPALIVED = "keepalived"
    NONE = "none"


class ReceiverKind(str, Enum):
    """How somebody is told of alerts."""

    WEBHOOK = "webhook"
    EMAIL = "email"
    DINGTALK = "dingtalk"
    WECOM = "wecom"


class Severity(str, Enum):
    """How bad an alert is, the worst last."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class LogDriver(str, Enum):
    NONE = "none"
    ELASTIC = "elastic"


class Market(str, Enum):
    """How a price has come about."""

    ON_DEMAND = "on-demand"
    SPOT = "spot"
    RESERVED = "reserved"
    OWNED = "owned"


class ModelKind(str, Enum):
    CHECKPOINT = "checkpoint"
    MOTION_MODULE = "motion_module"
    LORA = "lora"
    VAE = "vae"
    CONTROLNET = "controlnet"


class Images(Part):
    registry: Registry = ""
    tag: Tag = "0.1.0"
    webui: Variant = Variant.CUDA


class Webui(Part):
    """Who may use a node directly; or a foreign A1111 in its place, as an image of one's own or running already."""

    engine: WebuiEngine = WebuiEngine.OWN
    image: Annotated[str, Field(pattern=IMAGE)] | None = None
    url: Annotated[str, Field(pattern=FOREIGN_URL)] | None = None
    auth_file: AbsolutePath | None = None


class Gpu(Part):
    uuid: GpuUuid
    memory_gib: Annotated[int, Field(ge=1, le=1024)] = 24


class Host(Part):
    address: IPv4Address
    roles: Annotated[tuple[Role, ...], Field(min_length=1)]
    gpus: Annotated[tuple[Gpu, ...], Field(max_length=16)] = ()
    cpu_workers: Annotated[int, Field(ge=0, le=64)] = 0


class Network(Part):
    subnet: IPv4Network | None = None


class Tls(Part):
    mode: TlsMode = TlsMode.SELF_SIGNED
    certificate: AbsolutePath | None = None
    key: AbsolutePath | None = None
    email: Email | None = None
    directory: Annotated[str, Field(pattern=ACME_DIRECTORY)] = LETS_ENCRYPT


class Vrrp(Part):
    mode: VrrpMode = VrrpMode.KEEPALIVED
    interface: Annotated[str, Field(pattern=INTERFACE)] | None = None
    router_id: Annotated[int, Field(ge=1, le=255)] | None = None


class Gateway(Part):
    vip: IPv4Address | None = None
    vrrp: Vrrp = Vrrp()
    bind: IPv4Address = IPv4Address("0.0.0.0")  # noqa: S104  (the gateway is the one public part)
    server_name: ServerName = "_"
    http_port: Port = 80
    https_port: Port = 443
    balance: Balance = Balance.COOKIE
    tls: Tls = Tls()
    max_body_mib: Annotated[int, Field(ge=1, le=2048)] = 24
    submissions_per_second: Annotated[int, Field(ge=1, le=10_000)] = 20


class Nfs(Part):
    server: HostName
    export: AbsolutePath
    options: Annotated[str, Field(pattern=MOUNT_OPTIONS)] = "nfsvers=4.2,hard,timeo=50,retrans=3"


class Cephfs(Part):
    path: AbsolutePath


class Storage(Part):
    driver: StorageDriver = StorageDriver.LOCAL
    nfs: Nfs | None = None
    cephfs: Cephfs | None = None


class Model(Part):
    name: FileName
    kind: ModelKind
    source: Annotated[str, Field(pattern=SOURCE)] | None = None
    sha256: Annotated[str, Field(pattern=SHA256)] | None = None


class Models(Part):
    checkpoint: FileName
    motion_module: FileName
    vae: FileName | None = None
    available: Annotated[tuple[Model, ...], Field(min_length=1, max_length=500)]


class Queue(Part):
    lease_seconds: Annotated[float, Field(ge=1, le=60)] = 2.5
    beat_seconds: Annotated[float, Field(ge=0.1, le=10)] = 0.5
    limit: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    crash_budget: Annotated[int, Field(ge=1, le=20)] = 3
    error_budget: Annotated[int, Field(ge=1, le=20)] = 3
    oom_budget: Annotated[int, Field(ge=1, le=20)] = 5
    user_weights: Annotated[dict[UserName, Annotated[float, Field(ge=0.01, le=100)]], Field(max_length=1000)] = {}
    max_pixel_frames: Annotated[int, Field(ge=64 * 64, le=1024 * 1024 * 128)] = 64 * 1024 * 1024
    retention_days: Annotated[int, Field(ge=1, le=365)] = 7
    maxmemory_mib: Annotated[int, Field(ge=64, le=65_536)] = 1024
    sentinel_quorum: Annotated[int, Field(ge=1, le=9)] | None = None
    port: Port = 6379
    sentinel_port: Port = 26379


class Timeouts(Part):
    job_seconds: Seconds = 1800
    proxy_seconds: Seconds = 3600
    stop_grace_seconds: Seconds = 1860
    drain_seconds: Seconds = 60
    no_progress_seconds: Seconds = 120
    load_seconds: Seconds = 300
    decode_seconds: Seconds = 120
    encode_seconds: Seconds = 120


class Worker(Part):
    cpus: Annotated[float, Field(ge=0.1, le=256)] = 8.0
    memory_gib: Annotated[int, Field(ge=1, le=1024)] = 32
    threads: Annotated[int, Field(ge=1, le=64)] = 4
    first_port: Port = 7860
    cuda_allocator: Annotated[str, Field(pattern=ALLOCATOR)] = "expandable_segments:True"
    step_seconds: Annotated[float, Field(ge=0, le=600)] = 0.05
    checkpoint_seconds: Annotated[int, Field(ge=0, le=3600)] = 30
    dtype: Dtype = Dtype.AUTO
    model_cache_gib: Annotated[float, Field(ge=0, le=1024)] = 8.0


class GpuMemory(Part):
    """The alert that takes a worker out of service; percent of a GPU's memory, without what torch only keeps."""

    high_percent: Percent = 95.0
    high_seconds: Seconds = 300
    low_percent: Percent = 80.0
    low_seconds: Seconds = 600


class Slo(Part):
    """What the service promises its users."""

    wait_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    wait_percent: Percent = 95.0
    success_percent: Percent = 99.0


class Receiver(Part):
    """Somebody who is told of alerts. What holds a secret is a file on the monitoring hosts."""

    kind: ReceiverKind
    severity: Severity = Severity.WARNING
    url_file: AbsolutePath | None = None
    secret_file: AbsolutePath | None = None
    to: Annotated[tuple[Email, ...], Field(max_length=50)] = ()
    sender: Email | None = None
    server: HostPort | None = None
    username: Annotated[str, Field(pattern=LOGIN)] | None = None


class Monitoring(Part):
    retention_days: Annotated[int, Field(ge=1, le=365)] = 15
    retention_gib: Annotated[int, Field(ge=1, le=10_000)] = 20
    scrape_seconds: Annotated[int, Field(ge=1, le=60)] = 10
    gpu_memory: GpuMemory = GpuMemory()
    slo: Slo = Slo()
    receivers: Annotated[dict[Name, Receiver], Field(max_length=20)] = {}
    gateway_ca: AbsolutePath | None = None
    ceph: Annotated[tuple[HostPort, ...], Field(max_length=20)] = ()
    grafana_image: Annotated[str, Field(pattern=IMAGE)] | None = None
    article_names: bool = True


class Price(Part):
    """As of some day; nobody asks for a newer one."""

    usd_per_hour: Annotated[float, Field(ge=0, le=100_000)]
    market: Market
    as_of: Annotated[str, Field(pattern=DAY)]


class GpuPrice(Price):
    model: Annotated[str, Field(pattern=GPU_MODEL)]


class HostPrice(Price):
    host: Name


def plain_model(name: str) -> str:
    """NVML says `NVIDIA A10G`, people say `A10G`."""
    return name.casefold().removeprefix("nvidia ").strip()


class Cost(Part):
    """What the machines cost. The price of a host counts before those of its GPUs."""

    gpu_prices: Annotated[tuple[GpuPrice, ...], Field(default_factory=tuple, max_length=100)]
    host_prices: Annotated[tuple[HostPrice, ...], Field(default_factory=tuple, max_length=5000)]
    aws_credentials: AbsolutePath | None = None


class Logs(Part):
    """Where every container's lines go. The images filebeat, logstash and elasticsearch are a vendor's."""

    driver: LogDriver = LogDriver.NONE
    retention_days: Annotated[int, Field(ge=1, le=365)] = 14
    memory_gib: Annotated[int, Field(ge=1, le=64)] = 2
    docker_folder: AbsolutePath = "/var/lib/docker"
    images: Registry = "elastic"
    version: Tag = "9.2.1"


class Cluster(Part):
    """A whole `cluster.yaml`."""

    name: Name
    images: Images = Images()
    webui: Webui = Webui()
    hosts: Annotated[dict[Name, Host], Field(min_length=1, max_length=5000)]
    network: Network = Network()
    gateway: Gateway = Gateway()
    storage: Storage = Storage()
    models: Models
    queue: Queue = Queue()
    worker: Worker = Worker()
    timeouts: Timeouts = Timeouts()
    monitoring: Monitoring = Monitoring()
    cost: Annotated[Cost, Field(default_factory=Cost)]
    logs: Logs = Logs()
