"""Every expression of every dashboard on a real Prometheus that has hours of all metrics, and, where there is one, in a
real Grafana."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from generator.docker import Engine
from generator.errors import ToolError
from generator.plan import plan
from generator.render import render_host
from generator.sources import ROOT, read_sources
from tests.unit.generator.clusters import monitored, with_dashboards

pytestmark = pytest.mark.docker
HOURS, STEP = 7, 30
FOLDER = ROOT / "config/grafana/dashboards"
NODES = ("gpu-01", "gpu-02")
SIZES = ("512x512", "768x512")
BOUNDS = (1, 10, 60, 300)
Value = Callable[[float], float]
"""Seconds since the beginning → value."""


@dataclass
class Samples:
    """OpenMetrics: whole families, one after the other, each of their series in the order of time."""

    families: dict[str, tuple[str, list[tuple[str, Value]]]] = field(default_factory=dict)

    def gauge(self, name: str, value: Value | float, /, **labels: str) -> None:
        self._add(name, "gauge", name, value, labels)

    def counter(self, name: str, per_second: float, /, **labels: str) -> None:
        self._add(name.removesuffix("_total"), "counter", name, lambda t: 1 + per_second * t, labels)

    def histogram(self, name: str, per_second: float, /, **labels: str) -> None:
        for index, bound in enumerate([*(f"{bound:.1f}" for bound in BOUNDS), "+Inf"], start=1):
            share = per_second * index / (len(BOUNDS) + 1)
            self._add(name, "histogram", f"{name}_bucket", _rising(share), {**labels, "le": bound})
        for part, value in (("_count", per_second), ("_sum", 20 * per_second)):
            self._add(name, "histogram", f"{name}{part}", _rising(value), labels)

    def _add(self, family: str, kind: str, name: str, value: Value | float, labels: dict[str, str]) -> None:
        text = ",".join(f'{key}="{one}"' for key, one in labels.items())
        function = value if callable(value) else _constant(value)
        self.families.setdefault(family, (kind, []))[1].append((f"{name}{{{text}}}", function))

    def lines(self, begin: float, end: float) -> Iterator[str]:
        for family, (kind, series) in self.families.items():
            yield f"# TYPE {family} {kind}"
            for name, value in series:
                moment = begin
                while moment <= end:
                    yield f"{name} {value(moment - begin):g} {moment:.0f}"
                    moment += STEP
        yield "# EOF"


def _constant(value: float) -> Value:
    return lambda _: value


def _rising(per_second: float) -> Value:
    return lambda t: per_second * t


def everything() -> Samples:
    """What the exporters of two hosts tell, and those of others."""
    made = Samples()
    for number, node in enumerate(NODES):
        _of_a_host(made, node, number)
        _of_its_gpu(made, {"node_name": node, "gpu_id": "0", "uuid": f"GPU-{number}"})
        _of_its_jobs(made, node)
    made.gauge(
        "probe_success", 1, job="gateway", node_name="virtual-address", instance="https://192.168.1.100:443/readyz"
    )
    made.gauge("animatediff_aws_cost_usd", 12.5, node_name=NODES[0], service="EC2", final="true")
    made.gauge("animatediff_aws_cost_usd", 1.5, node_name=NODES[0], service="EC2", final="false")
    made.counter("animatediff_cost_explorer_requests_total", 0.001, node_name=NODES[0])
    return made


def _of_a_host(made: Samples, node: str, number: int) -> None:
    for job in ("node", "exporter", "webui", "queue", "prometheus"):
        # The second host's node-exporter and exporter are down at the end: an alert fires.
        made.gauge(
            "up", 0 if number and job in ("node", "exporter") else 1, job=job, node_name=node, instance=f"{node}:{job}"
        )
    host = {"node_name": node, "job": "node", "instance": f"{node}:9100"}
    made.counter("node_cpu_seconds_total", 0.6, mode="idle", cpu="0", **host)
    made.gauge("node_memory_MemTotal_bytes", 64e9, **host)
    made.gauge("node_memory_MemAvailable_bytes", 32e9, **host)
    disk = {"device": "/dev/sda1", "mountpoint": "/", "fstype": "ext4", **host}
    made.gauge("node_filesystem_size_bytes", 100e9, **disk)
    made.gauge("node_filesystem_avail_bytes", 60e9, **disk)
    made.counter("node_network_receive_bytes_total", 1e6, device="eth0", **host)
    made.counter("node_network_transmit_bytes_total", 1e6, device="eth0", **host)
    made.counter("node_disk_io_time_seconds_total", 0.1, device="sda", **host)
    redis = {"node_name": node, "job": "queue", "instance": f"{node}:6379", "service": "redis"}
    made.gauge("redis_up", 1, **redis)
    made.gauge("redis_instance_info", 1, role="slave" if number else "master", **redis)
    made.gauge("redis_memory_used_bytes", 1e8, **redis)
    made.gauge("redis_memory_max_bytes", 1e9, **redis)
    made.counter("redis_commands_processed_total", 50, **redis)
    gateway = {"job": "gateway", "node_name": node, "instance": f"https://{node}:443/readyz"}
    made.gauge("probe_success", 1, **gateway)
    made.gauge("probe_ssl_earliest_cert_expiry", time.time() + 50 * 86400, **gateway)
    for job in ("api", "agent-0", "exporter"):
        made.counter("process_cpu_seconds_total", 0.2, node_name=node, job=job, instance=f"{node}:9400")
        made.gauge("process_resident_memory_bytes", 1e8, node_name=node, job=job, instance=f"{node}:9400")
    made.counter("nginx_http_requests_total", 5, node_name=node)
    for pool in ("api", "webui"):
        made.histogram("nginx_upstream_response_seconds", 2, node_name=node, pool=pool, upstream=f"{node}/0")
        for status in ("2xx", "5xx"):
            made.counter(
                "nginx_upstream_responses_total", 1, node_name=node, pool=pool, upstream=f"{node}/0", status=status
            )
    for other in NODES:
        for state in ("UP", "WARMING", "DRAINING", "DOWN", "QUARANTINED", "UNKNOWN"):
            seen = {"node_name": node, "node": f"{other}/0", "pool": "webui", "state": state}
            made.gauge("animatediff_node_state", float(state == "UP"), **seen)
            made.counter("animatediff_node_state_changes_total", 0.001, **seen)
    for source in ("redis", "gateway"):
        made.gauge("animatediff_exporter_source_up", 1, node_name=node, source=source)


def _of_its_gpu(made: Samples, gpu: dict[str, str]) -> None:
    made.gauge("nvidia_smi_utilization_gpu_ratio", lambda t: 0.5 + 0.4 * math.sin(t / 600), **gpu)
    made.gauge("nvidia_smi_utilization_memory_ratio", 0.4, **gpu)
    made.gauge("nvidia_smi_memory_used_bytes", 20e9, **gpu)
    made.gauge("nvidia_smi_memory_total_bytes", 24e9, **gpu)
    made.gauge("nvidia_smi_temperature_gpu_celsius", 70, **gpu)
    made.gauge("nvidia_smi_power_draw_watts", 300, **gpu)
    made.counter("nvidia_smi_energy_joules_total", 300, **gpu)
    made.gauge("nvidia_smi_clocks_current_sm_clock_hz", 1.7e9, **gpu)
    made.gauge("nvidia_smi_clocks_throttled", 1, reason="sw_power_cap", **gpu)
    made.counter("nvidia_smi_ecc_errors_total", 0.001, type="corrected", **gpu)
    made.counter("nvidia_smi_xid_errors_total", 0.001, xid="13", **gpu)
    made.gauge("nvidia_smi_gpu_up", 1, **gpu)
    made.gauge("nvidia_smi_gpu_info", 1, name="NVIDIA A10G", driver_version="550.1", **gpu)
    worker = {"node_name": gpu["node_name"], "worker": f"{gpu['node_name']}/0", "uuid": gpu["uuid"], "job": "webui"}
    made.gauge("webui_gpu_memory_cached_bytes", 5e9, **worker)
    made.gauge("webui_engine_resident_memory_bytes", 4e9, **worker)
    made.counter("webui_engine_starts_total", 0.001, **worker)
    made.counter("webui_steps_total", 2, **worker)
    made.counter("webui_generations_total", 0.1, outcome="done", **worker)
    made.histogram("animatediff_model_load_time_seconds", 0.01, model="sd15", cache="cold", **worker)


def _of_its_jobs(made: Samples, node: str) -> None:
    for queue in ("default", "special"):
        made.gauge("animatediff_job_queue_length", 3, node_name=node, queue=queue)
        made.gauge("animatediff_jobs_in_progress", 2, node_name=node, queue=queue)
        made.gauge("animatediff_job_oldest_waiting_seconds", 40, node_name=node, queue=queue)
    begin = time.time() - HOURS * 3600
    made.gauge(
        "animatediff_worker_last_heartbeat_timestamp_seconds",
        lambda t: begin + t - 1,
        node_name=node,
        worker=f"{node}/0",
    )
    for size in SIZES:
        labels = {"node_name": node, "resolution": size}
        made.histogram("animatediff_job_wait_seconds", 0.1, **labels)
        made.histogram("animatediff_job_duration_seconds", 0.1, **labels)
        made.counter("animatediff_job_success_total", 0.1, model="sd15", **labels)
        for reason in ("OOM", "WORKER_LOST"):
            made.counter("animatediff_job_failures_total", 0.01, reason=reason, **labels)
        made.counter("animatediff_video_seconds_generated_total", 0.2, **labels)
        made.counter("animatediff_gpu_seconds_total", 0.5, gpu_model="NVIDIA A10G", **labels)
        made.counter("animatediff_job_cost_usd_total", 0.0001, **labels)
    made.gauge("animatediff_node_price_usd_per_hour", 1.0, node_name=node, source="on-demand")


@dataclass(frozen=True)
class Fed:
    """A Prometheus with the rules and everything measured."""

    name: str
    url: str
    end: float

    def instant(self, expression: str) -> list[dict[str, Any]]:
        return self._ask("query", query=expression, time=self.end)

    def range(self, expression: str) -> list[dict[str, Any]]:
        return self._ask("query_range", query=expression, start=self.end - 1800, end=self.end, step=60)

    def _ask(self, path: str, **params: Any) -> list[dict[str, Any]]:
        response = httpx.get(f"{self.url}/api/v1/{path}", params=params, timeout=30)
        if response.status_code == 503:  # it still reads its data
            response.raise_for_status()
        answer = response.json()
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


def docker(*words: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=300, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def fed(images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fed]:
    folder, name = tmp_path_factory.mktemp("fed"), f"animatediff-test-fed-{uuid.uuid4().hex[:6]}"
    folder.chmod(0o777)
    end = time.time()
    (folder / "all.om").write_text("\n".join(everything().lines(end - HOURS * 3600, end)) + "\n")
    the_plan = plan(monitored())
    files = render_host(the_plan.cluster, the_plan.hosts[0], read_sources())
    (folder / "rules").mkdir()
    for path, content in files.items():
        if path.startswith("config/prometheus/rules/"):
            (folder / "rules" / Path(path).name).write_bytes(content)
    (folder / "prometheus.yml").write_text("global: {evaluation_interval: 2s}\nrule_files: [/fed/rules/*.yml]\n")
    image = f"animatediff-ha/prometheus:{images}"
    docker("network", "create", name)
    try:
        mount = ["-v", f"{folder}:/fed"]
        convert = ["tsdb", "create-blocks-from", "openmetrics", "/fed/all.om", "/fed/data"]
        docker("run", "--rm", "--network", "none", *mount, "--entrypoint", "promtool", image, *convert)
        command = ["--config.file=/fed/prometheus.yml", "--storage.tsdb.path=/fed/data", "--log.level=warn"]
        docker("run", "-d", "--name", name, "--network", name, "--network-alias", "fed", *mount, image, *command)
        address = docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name)
        yield _ready(Fed(name, f"http://{address}:9090", end))
    finally:
        docker("rm", "-f", "-v", name, check=False)
        docker("network", "rm", name, check=False)


def _ready(fed: Fed) -> Fed:
    """Until the rules have told what is measured now and an alert fires. `end` is then."""
    limit = time.monotonic() + 150
    while time.monotonic() < limit:
        try:
            now = Fed(fed.name, fed.url, time.time())
            recorded = [now.instant(f"{name}{{}}") for name in recorded_names()]
            if all(recorded) and now.instant('ALERTS{alertstate="firing", alertname!="Watchdog"}'):
                return now
        except httpx.HTTPError:
            pass
        time.sleep(1)
    missing = [name for name in recorded_names() if not fed.instant(name)]
    pytest.fail(f"not ready; not recorded: {missing}\n{docker('logs', '--tail', '20', fed.name)}")


def recorded_names() -> list[str]:
    rules = "".join(path.read_text() for path in (ROOT / "config/prometheus/rules").iterdir())
    return sorted(set(re.findall(r"record: (\S+)", rules)))


def filled_in(expression: str) -> str:
    """With the variables as Grafana fills them in when all is chosen."""
    for variable, value in (
        ("$__rate_interval", "5m"),
        ("$__range_s", "1800"),
        ("$__range", "30m"),
        ("$node", ".*"),
        ("$resolution", ".*"),
    ):
        expression = expression.replace(variable, value)
    assert "$" not in expression, expression
    return expression


def panels() -> list[Any]:
    return [
        pytest.param(panel, id=f"{path.stem}: {panel['title']}")
        for path in sorted(FOLDER.glob("*.json"))
        for panel in json.loads(path.read_text())["panels"]
        if panel["type"] != "row"
    ]


def as_shown(legend: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend)


@pytest.mark.parametrize("panel", panels())
def test_every_panel_has_data_and_tells_its_series_apart(fed: Fed, panel: dict[str, Any]) -> None:
    names: list[str] = []
    for target in panel["targets"]:
        ask = fed.instant if target.get("instant") else fed.range
        found = ask(filled_in(target["expr"]))
        assert found, target["expr"]
        values = [float(one["value"][1]) if "value" in one else float(one["values"][-1][1]) for one in found]
        assert not any(math.isnan(value) for value in values), (target["expr"], values)
        for one in found:
            if one["metric"].get("node_name") and panel["type"] != "stat":
                assert "{{node_name}}" in target["legendFormat"], target["expr"]
        names += [as_shown(target["legendFormat"], one["metric"]) for one in found]
    assert all(name.strip() for name in names), names
    assert len(names) == len(set(names)), f"series that cannot be told apart: {names}"
    if panel["type"] == "stat":
        assert len(names) == 1, f"one number, not {names}"


def test_the_variables_have_values(fed: Fed) -> None:
    for path in sorted(FOLDER.glob("*.json")):
        for variable in json.loads(path.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
                assert asked, variable["query"]
                values = {one["metric"].get(asked[2]) for one in fed.instant(asked[1])}
                assert values == set(NODES if variable["name"] == "node" else SIZES)


def test_what_a_second_of_video_costs(fed: Fed) -> None:
    """Each host makes 0.2 s of each resolution a second, for 0.0001 USD a second; both together cost 2 USD an hour."""
    costs = {
        (one["metric"]["basis"], one["metric"]["resolution"]): float(one["value"][1])
        for one in fed.instant("animatediff_cost_usd_per_video_second")
    }
    assert costs.keys() == {(basis, size) for basis in ("gpu_time", "cluster") for size in SIZES}
    for size in SIZES:
        assert costs["gpu_time", size] == pytest.approx(0.0001 / 0.2, rel=0.02)
        assert costs["cluster", size] == pytest.approx((2 / 3600) / 2 / 0.4, rel=0.02)


# --- Grafana itself, where there is one -----------------------------------------------------------------------------

GRAFANA = os.environ.get("APPLIANCE_TEST_GRAFANA_IMAGE", "grafana/grafana:11.6.0")
WHO = {"X-Appliance-User": "ada"}


@pytest.fixture(scope="module")
def grafana(engine: Engine, fed: Fed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The rendered one, hardened as rendered, that asks the fed Prometheus."""
    if engine.image(GRAFANA) is None:
        try:
            for _ in engine.pull(GRAFANA, first_line_within=20, timeout=900):
                pass
        except ToolError as error:
            pytest.skip(
                f"NOT CHECKED: the dashboards in Grafana itself. {GRAFANA} is not here and cannot be pulled; load it "
                f"or name another one in APPLIANCE_TEST_GRAFANA_IMAGE ({error.stderr_tail[-200:]})"
            )
    folder, name = tmp_path_factory.mktemp("grafana"), f"{fed.name}-grafana"
    the_plan = plan(with_dashboards())
    for path, content in render_host(the_plan.cluster, the_plan.by_name["gpu-02"], read_sources()).items():
        if path.startswith("config/grafana/"):
            place = folder / path.removeprefix("config/grafana/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content.replace(b"https://192.168.1.11:9090", b"http://fed:9090"))
    for secret in ("monitoring_password", "grafana_admin_password", "grafana_secret_key", "ca.crt"):
        (folder / secret).write_text("a-secret-of-this-test")
    for place in [folder, *folder.rglob("*")]:
        place.chmod(0o755 if place.is_dir() else 0o644)
    hardened = ["--user", "10001:10001", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true"]
    mounts = ["-v", f"{folder}:/etc/appliance-grafana:ro", "-v", f"{folder}:/run/secrets:ro", "--tmpfs", "/tmp"]
    paths = ["-e", "GF_PATHS_CONFIG=/etc/appliance-grafana/grafana.ini"]
    paths += ["-e", "GF_PATHS_PROVISIONING=/etc/appliance-grafana/provisioning"]
    try:
        docker("run", "-d", "--name", name, "--network", fed.name, *hardened, *mounts, *paths, GRAFANA)
        address = docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name)
        with httpx.Client(base_url=f"http://{address}:3000/grafana", headers=WHO, timeout=30) as client:
            _wait_for_grafana(client, name)
            yield client
    finally:
        docker("rm", "-f", "-v", name, check=False)


def _wait_for_grafana(client: httpx.Client, name: str) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            found = client.get("/api/search", params={"tag": "animatediff"})
            if found.status_code == 200 and len(found.json()) == len(list(FOLDER.glob("*.json"))):
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    pytest.fail(f"Grafana has not got its dashboards within 120 s\n{docker('logs', '--tail', '30', name)}")


def test_grafana_shows_every_panel_without_an_error(grafana: httpx.Client) -> None:
    for path in sorted(FOLDER.glob("*.json")):
        committed = json.loads(path.read_text())
        loaded = grafana.get(f"/api/dashboards/uid/{committed['uid']}").raise_for_status().json()
        assert loaded["meta"]["provisioned"] is True
        assert loaded["meta"]["canSave"] is False
        for panel in loaded["dashboard"]["panels"]:
            if panel["type"] == "row":
                continue
            queries = [
                {
                    **target,
                    "datasource": {"type": "prometheus", "uid": "prometheus"},
                    "expr": filled_in(target["expr"]),
                    "intervalMs": 60_000,
                    "maxDataPoints": 100,
                }
                for target in panel["targets"]
            ]
            answer = grafana.post("/api/ds/query", json={"queries": queries, "from": "now-30m", "to": "now"})
            results = answer.raise_for_status().json()["results"]
            for letter, result in results.items():
                where = f"{path.stem}: {panel['title']}, {letter}"
                assert "error" not in result, f"{where}: {result.get('error')}"
                assert result["frames"], where


def test_grafana_lets_nobody_in_without_a_name(grafana: httpx.Client) -> None:
    assert httpx.get(f"{grafana.base_url}/api/search").status_code == 401
