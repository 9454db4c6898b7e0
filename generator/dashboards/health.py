"""Cluster health: what there is, whether it lives, and how busy it is."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as build

from generator.dashboards.panels import (
    GREEN,
    ON_NODE,
    ORANGE,
    RED,
    Query,
    figure,
    listing,
    new_dashboard,
    node_variable,
    shares,
    states,
    timeline,
)

FALLS = float("-inf")
GPU = "{{node_name}} GPU {{gpu_id}}"
HEARTBEAT = "animatediff_worker_last_heartbeat_timestamp_seconds"


def dashboard() -> build.Dashboard:
    made = new_dashboard(
        "health",
        "Cluster health",
        "Hosts, GPUs, workers, queue and gateways: what there is, whether it lives, how busy it is.",
        node_variable(),
    )
    for row in (_overview, _nodes, _gpus, _gateway, _queue, _hosts):
        row(made)
    return made


def _overview(made: build.Dashboard) -> None:
    made.with_row(build.Row("Overview"))
    made.with_panel(
        figure(
            "Hosts down",
            "Hosts whose node-exporter does not answer.",
            "none",
            Query('count(up{job="node"} == 0) or vector(0)', "down"),
            limits=[(1, RED)],
        )
    )
    made.with_panel(
        figure(
            "Workers up",
            "Workers that the gateways send requests to, of all that there are.",
            "percentunit",
            Query(
                'count(max by (node) (animatediff_node_state{pool="webui", state="UP"}) == 1)'
                ' / count(count by (node) (animatediff_node_state{pool="webui"}))',
                "up",
            ),
            limits=[(FALLS, RED), (0.5, ORANGE), (1, GREEN)],
        )
    )
    made.with_panel(
        figure(
            "GPUs lost",
            "GPUs that the driver no longer reaches.",
            "none",
            Query("count(nvidia_smi_gpu_up == 0) or vector(0)", "lost"),
            limits=[(1, RED)],
        )
    )
    made.with_panel(
        figure(
            "Jobs waiting",
            "Jobs in line, over all queues.",
            "none",
            Query("sum(max by (queue) (animatediff_job_queue_length))", "waiting"),
        )
    )
    made.with_panel(
        figure(
            "Jobs running",
            "Jobs that a worker has now.",
            "none",
            Query("sum(max by (queue) (animatediff_jobs_in_progress))", "running"),
        )
    )
    made.with_panel(
        figure(
            "Alerts",
            "Alerts that fire now, without the watchdog.",
            "none",
            Query('count(ALERTS{alertstate="firing", alertname!="Watchdog"}) or vector(0)', "firing"),
            limits=[(1, ORANGE)],
        )
    )
    made.with_panel(
        listing(
            "Alerts that fire",
            "Each with what it is about; Alertmanager and the README say what to do.",
            "none",
            Query('ALERTS{alertstate="firing", alertname!="Watchdog"}', "{{alertname}} {{node_name}}"),
            width=24,
        )
    )


def _nodes(made: build.Dashboard) -> None:
    made.with_row(build.Row("Nodes, as the gateways see them"))
    made.with_panel(
        states(
            "State of every node",
            "The worst that any gateway sees: down, in quarantine, draining, warming up, or up.",
            Query(
                "max by (node, pool) ("
                'animatediff_node_state{state="UP"} * 1 or animatediff_node_state{state="WARMING"} * 2'
                ' or animatediff_node_state{state="DRAINING"} * 3 or animatediff_node_state{state="QUARANTINED"} * 4'
                ' or animatediff_node_state{state="DOWN"} * 5 or animatediff_node_state{state="UNKNOWN"} * 6)',
                "{{pool}} {{node}}",
            ),
            [
                ("1", "up", GREEN),
                ("2", "warming up", "blue"),
                ("3", "draining", "purple"),
                ("4", "in quarantine", ORANGE),
                ("5", "down", RED),
                ("6", "unknown", "text"),
            ],
        )
    )
    made.with_panel(
        timeline(
            "Changes of state",
            "How often a node came into another state; more than six in ten minutes is an alert.",
            "none",
            Query(
                f"sum by (node_name, node, pool) (increase(animatediff_node_state_changes_total{{{ON_NODE}}}[10m]))",
                "{{pool}} {{node}}, seen by {{node_name}}",
            ),
        )
    )
    made.with_panel(
        timeline(
            "Age of the last heartbeat",
            "Of each worker's agent. Thirty seconds without one is an alert.",
            "s",
            Query(
                f"time() - max by (node_name, worker) ({HEARTBEAT}{{{ON_NODE}}})",
                "{{worker}} on {{node_name}}",
            ),
        )
    )


def _gpus(made: build.Dashboard) -> None:
    made.with_row(build.Row("GPUs"))
    for title, description, unit, expr in (
        ("Utilisation", "Share of the time that kernels ran.", "percentunit", "nvidia_smi_utilization_gpu_ratio"),
        (
            "Memory in use",
            "Without what torch only keeps: this is what the alert about GPU memory looks at.",
            "percentunit",
            "animatediff:gpu_memory:ratio",
        ),
        ("Memory allocated", "As nvidia-smi shows it, with what torch keeps.", "bytes", "nvidia_smi_memory_used_bytes"),
        (
            "Memory bandwidth in use",
            "Share of the time that the GPU's memory was read or written.",
            "percentunit",
            "nvidia_smi_utilization_memory_ratio",
        ),
        ("Temperature", "Above 90 °C for five minutes is an alert.", "celsius", "nvidia_smi_temperature_gpu_celsius"),
        ("Power", "What each GPU draws.", "watt", "nvidia_smi_power_draw_watts"),
        ("Clock", "Of the streaming multiprocessors.", "hertz", "nvidia_smi_clocks_current_sm_clock_hz"),
    ):
        made.with_panel(timeline(title, description, unit, Query(f"{expr}{{{ON_NODE}}}", GPU), width=8))
    made.with_panel(
        timeline(
            "Throttled",
            "1 while the clocks are held down for this reason.",
            "none",
            Query(f"nvidia_smi_clocks_throttled{{{ON_NODE}}} == 1", f"{GPU}: {{{{reason}}}}"),
            width=8,
        )
    )
    made.with_panel(
        timeline(
            "Errors of the hardware",
            "Xids of the driver and memory errors, within an hour.",
            "none",
            Query(f"increase(nvidia_smi_xid_errors_total{{{ON_NODE}}}[1h])", f"{GPU}: xid {{{{xid}}}}"),
            Query(f"increase(nvidia_smi_ecc_errors_total{{{ON_NODE}}}[1h])", f"{GPU}: ECC {{{{type}}}}"),
            width=8,
        )
    )
    made.with_panel(
        listing(
            "What there is",
            "Every GPU that an exporter has seen; 0 for one that is lost.",
            "none",
            Query(
                f"nvidia_smi_gpu_up{{{ON_NODE}}} * on (uuid) group_left (name, driver_version) nvidia_smi_gpu_info"
                f" or on (uuid) nvidia_smi_gpu_up{{{ON_NODE}}}",
                GPU,
            ),
            width=24,
        )
    )


def _gateway(made: build.Dashboard) -> None:
    made.with_row(build.Row("Gateways"))
    made.with_panel(
        timeline(
            "Requests",
            "Each gateway's, of all kinds.",
            "reqps",
            Query(f"rate(nginx_http_requests_total{{{ON_NODE}}}[$__rate_interval])", "{{node_name}}"),
            width=8,
        )
    )
    made.with_panel(
        timeline(
            "Time to answer, 95th percentile",
            "From a gateway's request to a node until its answer is there; streams count until they end.",
            "s",
            Query(
                "histogram_quantile(0.95, sum by (node_name, pool, le) ("
                f"rate(nginx_upstream_response_seconds_bucket{{{ON_NODE}}}[$__rate_interval])))",
                "{{pool}}, asked by {{node_name}}",
            ),
            width=8,
        )
    )
    made.with_panel(
        shares(
            "Answers",
            "By class of status.",
            "reqps",
            Query(
                f"sum by (node_name, status) (rate(nginx_upstream_responses_total{{{ON_NODE}}}[$__rate_interval]))",
                "{{status}}, {{node_name}}",
            ),
            width=8,
        )
    )
    made.with_panel(
        states(
            "Ready, as clients see it",
            "What the public address and each gateway answer to /readyz.",
            Query('probe_success{job="gateway"}', "{{node_name}} {{instance}}"),
            [("0", "not ready", RED), ("1", "ready", GREEN)],
            width=16,
        )
    )
    made.with_panel(
        timeline(
            "Until certificates end",
            "The soonest of each host; three weeks before is an alert.",
            "s",
            Query("min by (node_name) (probe_ssl_earliest_cert_expiry - time())", "{{node_name}}"),
            width=8,
        )
    )


def _queue(made: build.Dashboard) -> None:
    made.with_row(build.Row("Queue"))
    made.with_panel(
        states(
            "Redis",
            "Who is master, who follows, who is down.",
            Query(
                'redis_up{service="redis"} + on (instance) group_left ()'
                ' (count by (instance) (redis_instance_info{role="master"}) or 0 * count by (instance) (redis_up))',
                "{{node_name}}",
            ),
            [("0", "down", RED), ("1", "replica", "blue"), ("2", "master", GREEN)],
            width=12,
        )
    )
    made.with_panel(
        timeline(
            "Memory of Redis",
            "Share of queue.maxmemory_mib; when it is full, new jobs are refused.",
            "percentunit",
            Query("redis_memory_used_bytes / (redis_memory_max_bytes > 0)", "{{node_name}}"),
            width=6,
        )
    )
    made.with_panel(
        timeline(
            "Commands of Redis",
            "Each server's.",
            "ops",
            Query("rate(redis_commands_processed_total[$__rate_interval])", "{{node_name}}"),
            width=6,
        )
    )


def _hosts(made: build.Dashboard) -> None:
    made.with_row(build.Row("Hosts"))
    disk = f'fstype!~"tmpfs|ramfs|overlay|squashfs|iso9660",{ON_NODE}'
    network = f'device!~"lo|docker.*|br-.*|veth.*",{ON_NODE}'
    for title, description, unit, expr, legend in (
        (
            "Processors",
            "Share of the time that they worked.",
            "percentunit",
            f'1 - avg by (node_name) (rate(node_cpu_seconds_total{{mode="idle",{ON_NODE}}}[$__rate_interval]))',
            "{{node_name}}",
        ),
        (
            "Memory in use",
            "Without what the kernel would give away.",
            "percentunit",
            f"1 - node_memory_MemAvailable_bytes{{{ON_NODE}}} / node_memory_MemTotal_bytes",
            "{{node_name}}",
        ),
        (
            "Disks, free",
            "Less than a twentieth is an alert.",
            "percentunit",
            f"min by (node_name, mountpoint) (node_filesystem_avail_bytes{{{disk}}} / node_filesystem_size_bytes)",
            "{{mountpoint}} of {{node_name}}",
        ),
        (
            "Network, received",
            "By interface.",
            "Bps",
            f"rate(node_network_receive_bytes_total{{{network}}}[$__rate_interval])",
            "{{device}} of {{node_name}}",
        ),
        (
            "Network, sent",
            "By interface.",
            "Bps",
            f"rate(node_network_transmit_bytes_total{{{network}}}[$__rate_interval])",
            "{{device}} of {{node_name}}",
        ),
        (
            "Disks, busy",
            "Share of the time.",
            "percentunit",
            f"rate(node_disk_io_time_seconds_total{{{ON_NODE}}}[$__rate_interval])",
            "{{device}} of {{node_name}}",
        ),
    ):
        made.with_panel(timeline(title, description, unit, Query(expr, legend), width=8))
    made.with_panel(
        timeline(
            "Services, processors",
            "What each of our services uses.",
            "cores",
            Query(
                f"sum by (node_name, job, instance) (rate(process_cpu_seconds_total{{{ON_NODE}}}[$__rate_interval]))",
                "{{job}} of {{node_name}} {{instance}}",
            ),
        )
    )
    made.with_panel(
        timeline(
            "Services, memory",
            "What each of our services holds.",
            "bytes",
            Query(
                f"sum by (node_name, job, instance) (process_resident_memory_bytes{{{ON_NODE}}})",
                "{{job}} of {{node_name}} {{instance}}",
            ),
        )
    )
