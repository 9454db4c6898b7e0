"""Cluster → Plan: every number, name and address fixed, so that the templates only have to write them down.

Pure: no disk, clock, network or environment. Work per host does not grow with the number of hosts, except on the
few gateway hosts, which have to know every worker.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from generator import ports
from generator.limits import Limits
from generator.model import (
    Cluster,
    Host,
    ModelKind,
    Price,
    Role,
    StorageDriver,
    TlsMode,
    Variant,
    VrrpMode,
    WebuiEngine,
)
from generator.plan_logs import log_stores_of, shippers_of
from generator.plan_metrics import dashboards_of, guards_of, metrics_of
from generator.planned import (
    AcmePlan,
    CertificatePlan,
    ClusterPlan,
    ExporterPlan,
    ForeignPlan,
    GatewayPlan,
    HostPlan,
    Plan,
    QueuePlan,
    VirtualAddressPlan,
    VolumePlan,
    WorkerPlan,
)

SENTINEL_MASTER = "queue"
TLS_FOLDER = "/etc/nginx/tls"
MONITORING_IMAGES = ("alertmanager", "blackbox-exporter", "node-exporter", "prometheus", "redis-exporter")
DEMO_SOURCE = "demo"
"""`models.available[].source` of a model that the WebUI image builds itself."""


def plan(cluster: Cluster) -> Plan:
    """Fix every number of `cluster`, which `checks` has already found consistent."""
    queue_hosts = [(name, host) for name, host in cluster.hosts.items() if Role.QUEUE in host.roles]
    redis_environment = _redis_environment(cluster, queue_hosts)
    targets = _controller_targets(cluster)
    hosts = [
        _host(cluster, name, host, queue_hosts, redis_environment, targets) for name, host in cluster.hosts.items()
    ]
    return Plan(
        cluster=_shared(cluster, len(queue_hosts)),
        hosts=tuple(_with_monitoring(cluster, hosts)),
        addresses=(str(cluster.gateway.vip),) if cluster.gateway.vip else (),
        notices=_notices(cluster),
    )


def _single(cluster: Cluster) -> bool:
    return len(cluster.hosts) == 1


def _host(
    cluster: Cluster,
    name: str,
    host: Host,
    queue_hosts: list[tuple[str, Host]],
    redis_environment: dict[str, str],
    targets: str,
) -> HostPlan:
    return HostPlan(
        name=name,
        address=str(host.address),
        publish="" if _single(cluster) else str(host.address),
        gateway=_gateway(cluster, name, targets) if Role.GATEWAY in host.roles else None,
        vip=_virtual_address(cluster, name, host),
        api=Role.CONTROL in host.roles,
        queue=_queue(cluster, name, host, queue_hosts) if Role.QUEUE in host.roles else None,
        workers=_workers(cluster, name, host) if Role.WORKER in host.roles else (),
        exporter=_exporter(cluster, name, host) if ports.EXPORTED_ROLES & set(host.roles) else None,
        redis_environment=redis_environment,
    )


def _with_monitoring(cluster: Cluster, hosts: list[HostPlan]) -> Iterator[HostPlan]:
    metrics = metrics_of(cluster, {host.name: host.workers for host in hosts})
    dashboards, shippers, log_stores = dashboards_of(cluster), shippers_of(cluster), log_stores_of(cluster)
    guards = guards_of(cluster)
    for host in hosts:
        yield replace(
            host,
            gateway=host.gateway and replace(host.gateway, grafana=guards, grafana_named=_single(cluster)),
            monitored=bool(metrics),
            metrics=metrics.get(host.name),
            dashboards=dashboards.get(host.name),
            shipper=shippers.get(host.name),
            log_store=log_stores.get(host.name),
        )


def _workers(cluster: Cluster, name: str, host: Host) -> tuple[WorkerPlan, ...]:
    uuids: list[str | None] = [gpu.uuid for gpu in host.gpus] or [None] * host.cpu_workers
    first = cluster.worker.first_port
    return tuple(
        WorkerPlan(index, f"{name}/{index}", uuid, first + index, _foreign_url(cluster, host, index))
        for index, uuid in enumerate(uuids)
    )


def _foreign_url(cluster: Cluster, host: Host, index: int) -> str:
    webui = cluster.webui
    if webui.engine is WebuiEngine.OWN:
        return ""
    if webui.url is None:
        return f"http://webui-{index}:{ports.WEBUI}"
    return webui.url.replace("{address}", str(host.address)).replace("{index}", str(index))


def _gateway(cluster: Cluster, name: str, targets: str) -> GatewayPlan:
    gateway = cluster.gateway
    return GatewayPlan(
        server_name=gateway.server_name,
        bind=str(gateway.bind),
        http_port=gateway.http_port,
        https_port=gateway.https_port,
        certificate=_certificate(cluster, name),
        own_certificate=gateway.tls.mode is TlsMode.SELF_SIGNED,
        balance=gateway.balance.value,
        proxy_timeout_seconds=cluster.timeouts.proxy_seconds,
        max_body_bytes=gateway.max_body_mib << 20,
        submit_rate_per_second=gateway.submissions_per_second,
        worker_connections=4096,
        controller_targets=targets,
        # A webui that computes on the processor has nothing to spare for an answer; one with a GPU has.
        probe_timeout_seconds=0.2 if cluster.images.webui is Variant.CUDA else 0.5,
        leave_seconds=_leave_seconds(cluster),
    )


def _gateways(cluster: Cluster) -> list[str]:
    return [name for name, host in cluster.hosts.items() if Role.GATEWAY in host.roles]


def _leave_seconds(cluster: Cluster) -> float:
    """Two checks of keepalived's, or of a load balancer that asks every 5 s, and some more."""
    if len(_gateways(cluster)) == 1:
        return 0.0
    return 1.5 if _moves_address(cluster) else 15.0


def _certificate(cluster: Cluster, name: str) -> CertificatePlan | None:
    tls = cluster.gateway.tls
    if tls.mode is TlsMode.NONE:
        return None
    if tls.mode is TlsMode.FILES and tls.certificate and tls.key:
        chain, key = PurePosixPath(tls.certificate), PurePosixPath(tls.key)
        places = {str(chain.parent): TLS_FOLDER}
        places.setdefault(str(key.parent), f"{TLS_FOLDER}-key")
        inside = [f"{places[str(path.parent)]}/{path.name}" for path in (chain, key)]
        return CertificatePlan(inside[0], inside[1], tuple(places.items()))
    chain_path, key_path = f"{TLS_FOLDER}/tls.crt", f"{TLS_FOLDER}/tls.key"
    if tls.mode is TlsMode.ACME:
        return CertificatePlan(chain_path, key_path, (), _acme(cluster, name))
    return CertificatePlan(chain_path, key_path, (("./secrets/tls", TLS_FOLDER),))


def _acme(cluster: Cluster, name: str) -> AcmePlan:
    gateway = cluster.gateway
    siblings = tuple(
        f"{cluster.hosts[other].address}:{gateway.http_port}" for other in _gateways(cluster) if other != name
    )
    return AcmePlan(gateway.tls.directory, gateway.tls.email or "", gateway.server_name, siblings)


def _virtual_address(cluster: Cluster, name: str, host: Host) -> VirtualAddressPlan | None:
    """The order of the hosts decides only who yields where two hold the address, and who is quicker to take it."""
    vip, vrrp = cluster.gateway.vip, cluster.gateway.vrrp
    if not _moves_address(cluster) or vip is None or Role.GATEWAY not in host.roles:
        return None
    gateways = _gateways(cluster)
    return VirtualAddressPlan(
        address=str(vip),
        host=name,
        own=str(host.address),
        peers=tuple(str(cluster.hosts[other].address) for other in gateways if other != name),
        port=cluster.gateway.http_port,
        interface=vrrp.interface or "",
        # Another one for each address of a network of up to 255.
        router_id=vrrp.router_id or int(vip) % 255 + 1,
        # 3 ms apart from each other: two that are as quick would both take it for a moment. 255 is the owner's.
        priority=max(1, 250 - 4 * gateways.index(name)),
    )


def _moves_address(cluster: Cluster) -> bool:
    return cluster.gateway.vip is not None and cluster.gateway.vrrp.mode is VrrpMode.KEEPALIVED


def _controller_targets(cluster: Cluster) -> str:
    """JSON of every address the controller probes; service names where the cluster is a single host."""
    single = _single(cluster)
    api = [
        {"name": name, "address": f"api:{ports.API}" if single else f"{host.address}:{ports.API}"}
        for name, host in cluster.hosts.items()
        if Role.CONTROL in host.roles
    ]
    webui = [
        {"name": w.worker, "address": f"{w.probed}:{ports.WEBUI}" if single else f"{host.address}:{w.port}"}
        for name, host in cluster.hosts.items()
        if Role.WORKER in host.roles
        for w in _workers(cluster, name, host)
    ]
    return json.dumps({"api": api, "webui": webui}, separators=(",", ":"))


def _queue(cluster: Cluster, name: str, host: Host, queue_hosts: list[tuple[str, Host]]) -> QueuePlan:
    """The first host with the role starts as master; Sentinel's word counts from then on."""
    queue = cluster.queue
    replicated = len(queue_hosts) > 1
    first_name, first = queue_hosts[0]
    addresses = tuple(f"{other.address}:{queue.sentinel_port}" for _, other in queue_hosts) if replicated else ()
    return QueuePlan(
        port=queue.port,
        announce_address=str(host.address) if replicated else "",
        master_address="" if name == first_name else str(first.address),
        master_port=queue.port,
        min_replicas=1 if replicated else 0,
        maxmemory_bytes=queue.maxmemory_mib << 20,
        sentinel_port=queue.sentinel_port,
        quorum=queue.sentinel_quorum or len(queue_hosts) // 2 + 1,
        # Measured (see redis-tune-sentinel): three pings fit into the first; another try comes after twice the second.
        down_after_ms=700,
        failover_timeout_ms=3000,
        # A promoted master refuses writes until one replica has come over, so all are sent at once.
        parallel_syncs=max(1, len(queue_hosts) - 1),
        tls=not _single(cluster),
        sentinel_addresses=addresses,
    )


def _exporter(cluster: Cluster, name: str, host: Host) -> ExporterPlan:
    return ExporterPlan(
        workers=ports.worker_count(host),
        gpus=tuple(gpu.uuid for gpu in host.gpus),
        prices=_prices(cluster, name, host),
        aws_credentials=cluster.cost.aws_credentials or "" if name == _host_that_asks_aws(cluster) else "",
    )


def _prices(cluster: Cluster, name: str, host: Host) -> str:
    whole = next((price for price in cluster.cost.host_prices if price.host == name), None)
    table: dict[str, object] = {}
    if whole is not None:
        table["host"] = _price(whole)
    elif host.gpus and cluster.cost.gpu_prices:
        table["gpus"] = {price.model: _price(price) for price in cluster.cost.gpu_prices}
    return json.dumps(table, sort_keys=True, separators=(",", ":")) if table else ""


def _price(price: Price) -> dict[str, object]:
    return {"usd_per_hour": price.usd_per_hour, "market": price.market.value, "as_of": price.as_of}


def _host_that_asks_aws(cluster: Cluster) -> str:
    """One alone: every question costs. That of the metrics, if it has an exporter."""
    told = [(name, host) for name, host in cluster.hosts.items() if ports.EXPORTED_ROLES & set(host.roles)]
    return next((name for name, host in told if Role.METRICS in host.roles), told[0][0])


def _redis_environment(cluster: Cluster, queue_hosts: list[tuple[str, Host]]) -> dict[str, str]:
    tls = {} if _single(cluster) else {"APPLIANCE_REDIS_CA": "/run/secrets/ca.crt"}
    if len(queue_hosts) > 1:
        sentinels = ",".join(f"{host.address}:{cluster.queue.sentinel_port}" for _, host in queue_hosts)
        return {"APPLIANCE_SENTINELS": sentinels, "APPLIANCE_SENTINEL_MASTER": SENTINEL_MASTER, **tls}
    address = "redis" if _single(cluster) else str(queue_hosts[0][1].address)
    return {"APPLIANCE_REDIS_ADDRESS": f"{address}:{cluster.queue.port}", **tls}


def _shared(cluster: Cluster, queue_hosts: int) -> ClusterPlan:
    variant = cluster.images.webui
    foreign = cluster.webui.engine is WebuiEngine.A1111
    return ClusterPlan(
        name=cluster.name,
        images=_images(cluster),
        images_from_registry=bool(cluster.images.registry),
        variant=variant.value,
        device="cuda" if variant is Variant.CUDA else "cpu",
        engine="synthetic" if variant is Variant.SYNTHETIC else "diffusers",
        checkpoint=cluster.models.checkpoint,
        motion_module=cluster.models.motion_module,
        vae=cluster.models.vae or "",
        make_demo_models=variant is not Variant.SYNTHETIC and not foreign and _is_demo_model(cluster),
        create_storage=cluster.storage.driver is not StorageDriver.CEPHFS,
        volumes=_volumes(cluster),
        queue_environment=_queue_environment(cluster),
        api_environment=_api_environment(cluster),
        stop_grace_seconds=cluster.timeouts.stop_grace_seconds,
        drain_seconds=cluster.timeouts.drain_seconds,
        no_progress_seconds=cluster.timeouts.no_progress_seconds,
        load_seconds=cluster.timeouts.load_seconds,
        decode_seconds=cluster.timeouts.decode_seconds,
        encode_seconds=cluster.timeouts.encode_seconds,
        redis_replicas=1 if queue_hosts > 1 else 0,
        redis_tls=not _single(cluster),
        cuda_allocator=cluster.worker.cuda_allocator,
        threads=cluster.worker.threads,
        step_seconds=cluster.worker.step_seconds,
        checkpoint_seconds=cluster.worker.checkpoint_seconds,
        dtype=cluster.worker.dtype.value,
        model_cache_gib=cluster.worker.model_cache_gib,
        webui_limits=Limits(cluster.worker.cpus, cluster.worker.memory_gib << 10, 512),
        article_names=cluster.monitoring.article_names,
        api_auth_file="" if foreign else cluster.webui.auth_file or "",
        foreign=ForeignPlan(cluster.webui.image or "", cluster.webui.auth_file or "") if foreign else None,
    )


def _images(cluster: Cluster) -> dict[str, str]:
    prefix = f"{cluster.images.registry}/" if cluster.images.registry else ""
    acme = ("acme",) if cluster.gateway.tls.mode is TlsMode.ACME else ()
    monitored = any(Role.METRICS in host.roles for host in cluster.hosts.values())
    names = (
        *acme,
        "gateway",
        *(("keepalived",) if _moves_address(cluster) else ()),
        *(MONITORING_IMAGES if monitored else ()),
        "redis",
        "services",
    )
    images = {name: f"{prefix}animatediff-ha/{name}:{cluster.images.tag}" for name in names}
    images["webui"] = f"{prefix}animatediff-ha/webui-{cluster.images.webui.value}:{cluster.images.tag}"
    return images


def _is_demo_model(cluster: Cluster) -> bool:
    wanted = {
        (ModelKind.CHECKPOINT, cluster.models.checkpoint),
        (ModelKind.MOTION_MODULE, cluster.models.motion_module),
    }
    return any(m.source == DEMO_SOURCE and (m.kind, m.name) in wanted for m in cluster.models.available)


def _queue_environment(cluster: Cluster) -> dict[str, str]:
    queue = cluster.queue
    return {
        "APPLIANCE_LEASE_SECONDS": f"{queue.lease_seconds:g}",
        "APPLIANCE_BEAT_SECONDS": f"{queue.beat_seconds:g}",
        "APPLIANCE_QUEUE_LIMIT": str(queue.limit),
        "APPLIANCE_CRASH_BUDGET": str(queue.crash_budget),
        "APPLIANCE_ERROR_BUDGET": str(queue.error_budget),
        "APPLIANCE_OOM_BUDGET": str(queue.oom_budget),
        "APPLIANCE_JOB_TIMEOUT_SECONDS": str(cluster.timeouts.job_seconds),
        "APPLIANCE_RETENTION_SECONDS": str(queue.retention_days * 86_400),
    }


def _api_environment(cluster: Cluster) -> dict[str, str]:
    """What only submissions depend on."""
    environment = {"APPLIANCE_MAX_PIXEL_FRAMES": str(cluster.queue.max_pixel_frames)}
    if cluster.queue.user_weights:
        weights = json.dumps(cluster.queue.user_weights, sort_keys=True, separators=(",", ":"))
        environment["APPLIANCE_USER_WEIGHTS"] = weights
    return environment


def _volumes(cluster: Cluster) -> tuple[VolumePlan, ...]:
    storage = cluster.storage
    if storage.driver is StorageDriver.NFS and storage.nfs:
        nfs = storage.nfs
        return tuple(
            VolumePlan(
                name, {"type": "nfs", "o": f"addr={nfs.server},{nfs.options}", "device": f":{nfs.export}/{name}"}
            )
            for name in ("jobs", "models")
        )
    if storage.driver is StorageDriver.CEPHFS and storage.cephfs:
        path = storage.cephfs.path.rstrip("/")
        return tuple(
            VolumePlan(name, {"type": "none", "o": "bind", "device": f"{path}/{name}"}) for name in ("jobs", "models")
        )
    return (VolumePlan("jobs", {}), VolumePlan("models", {}))


def _notices(cluster: Cluster) -> tuple[str, ...]:
    dashboards = any(Role.DASHBOARDS in host.roles for host in cluster.hosts.values())
    if dashboards and cluster.monitoring.grafana_image is None:
        return ("role dashboards: monitoring.grafana_image names no image, so there will be no Grafana",)
    return ()
