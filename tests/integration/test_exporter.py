"""The exporter's process between NVIDIA's own bindings (on a library that obeys), a real Redis and a gateway's door."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from appliance import keys
from appliance.exporter.main import RATES_SECONDS
from appliance.process_figures import own_figures
from appliance.queue import FailKind, Queue
from tests import nvml as stub
from tests.integration.exporter_process import NODE, TOKEN, Door, Running, Scrape, running_exporter
from tests.integration.redis_server import (  # noqa: F401
    RedisServer,
    add,
    queue,
    redis,
    redis_server,
    take,
)
from tests.nvml import State, uuid_of

pytestmark = pytest.mark.docker

GPUS = 8
SIZE = "512x512"
PRICES = {"gpus": {"A10G": {"usd_per_hour": 1.2, "market": "spot", "as_of": "2025-11-01"}}}
BOUNDS = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300]
COUNTS: dict[str, object] = {
    "requests": 42,
    "peers": {
        f"webui {NODE}/0": {
            "status": {"2xx": 8, "5xx": 2}, "passed": 8, "failed": 2, "seconds_sum": 6.5,
            "within": [1, 4, 8, 8, 8, 8, 9, 9, 9, 9, 9, 9], "bounds": BOUNDS,
        },
        "api gpu-02": {"status": {"2xx": 3}, "seconds_sum": 0.3, "within": [0] + [3] * 11, "bounds": BOUNDS},
    },
}  # fmt: skip
VIEW = {
    "at": 1, "version": 3,
    "nodes": {
        f"webui {NODE}/0": {"state": "UP", "reason": "", "since_seconds": 3, "share": 1.0, "fingerprint": "f"},
        f"webui {NODE}/1": {"state": "DOWN", "reason": "refused", "since_seconds": 1, "share": 1.0},
        "api gpu-02": {"state": "SOMETHING NEW"},
    },
    "changes": {f"webui {NODE}/1 DOWN": 2, "nonsense": 1},
}  # fmt: skip
# The table of metrics; 25 is the webui's own, 31 a rule of Prometheus.
CANONICAL = (
    *("nvidia_smi_utilization_gpu_ratio", "nvidia_smi_utilization_memory_ratio", "nvidia_smi_memory_used_bytes"),
    *("nvidia_smi_memory_total_bytes", "nvidia_smi_temperature_gpu_celsius", "nvidia_smi_power_draw_watts"),
    *("nvidia_smi_energy_joules_total", "nvidia_smi_clocks_current_sm_clock_hz", "nvidia_smi_clocks_throttled"),
    *("nvidia_smi_ecc_errors_total", "nvidia_smi_xid_errors_total", "nvidia_smi_gpu_up", "nvidia_smi_gpu_info"),
    *("process_cpu_seconds_total", "process_resident_memory_bytes"),
    *("nginx_upstream_response_seconds_bucket", "nginx_upstream_responses_total", "nginx_http_requests_total"),
    *("animatediff_job_queue_length", "animatediff_jobs_in_progress", "animatediff_job_oldest_waiting_seconds"),
    *("animatediff_job_wait_seconds_bucket", "animatediff_job_success_total", "animatediff_job_failures_total"),
    *("animatediff_job_duration_seconds_bucket", "animatediff_video_seconds_generated_total"),
    *("animatediff_gpu_seconds_total", "animatediff_worker_last_heartbeat_timestamp_seconds"),
    *("animatediff_node_price_usd_per_hour", "animatediff_job_cost_usd_total"),
    *("animatediff_aws_cost_usd", "animatediff_cost_explorer_requests_total"),
    *("animatediff_node_state", "animatediff_node_state_changes_total"),
)
ALIASES = (
    *("nvidia_smi_utilization_gpu_percent", "nginx_upstream_response_milliseconds", "animatediff_job_failure_reason"),
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stub.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def state(tmp_path: Path) -> State:
    state = State(tmp_path / "nvml.txt")
    for number in range(GPUS):
        state.add(number)
    state.write()
    return state


@pytest_asyncio.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    async with Door(tmp_path / "state.sock", dict(COUNTS)).open() as door:
        yield door


def settings(state: State, library: Path, door: Door | None, workers: int = GPUS) -> dict[str, str]:
    return {
        "LD_LIBRARY_PATH": str(library),
        "NVML_STUB_STATE": str(state.path),
        "APPLIANCE_GPUS": ",".join(uuid_of(number) for number in range(workers)),
        "APPLIANCE_WORKERS": str(workers),
        "APPLIANCE_CHECKPOINT": "sd15.safetensors",
        "APPLIANCE_PRICES": json.dumps(PRICES),
        **({"APPLIANCE_GATEWAY_SOCKET": str(door.socket)} if door else {}),
    }


@pytest_asyncio.fixture
async def exporter(
    state: State, library: Path, door: Door, redis: Redis, redis_server: RedisServer, tmp_path: Path
) -> AsyncIterator[Running]:
    async with running_exporter(tmp_path, redis_server.port, settings(state, library, door)) as running:
        yield running


async def until(running: Running, wanted: Callable[[Scrape], bool], seconds: float = 20.0) -> Scrape:
    deadline = time.monotonic() + seconds
    while not wanted(scrape := await running.scrape()):
        assert time.monotonic() < deadline, scrape.text
        await asyncio.sleep(0.5)
    return scrape


async def until_xid(running: Running, state: State, gpu: int) -> None:
    """Reports of before it listened are nobody's: another one each time, until one is heard."""

    def is_heard(scrape: Scrape) -> bool:
        state.xids.append((uuid_of(gpu), 79))
        state.write()
        return (scrape.of("nvidia_smi_xid_errors_total", gpu_id=str(gpu), xid="79") or 0) > 0

    await until(running, is_heard)


async def work(queue: Queue, redis: Redis) -> None:
    """One job done and one that fails, on this host's worker 0; another one waits."""
    await queue.register(f"{NODE}/0", boot_id="b", state="idle", engine="", fingerprint="", synthetic="0")
    await queue.nodes.put_view(NODE, VIEW)
    await redis.hset(keys.processes(NODE), "agent-0", own_figures().to_text())
    for _ in range(3):
        await add(queue, resolution=SIZE)
    claim = await take(queue, f"{NODE}/0")
    await asyncio.sleep(0.1)
    await queue.commit(claim, "{}", model="sd15", video_seconds=2.0)
    await queue.fail(await take(queue, f"{NODE}/0"), FailKind.OOM, "OOM", "x")
    await queue.tick()


async def test_every_metric_of_the_table_in_one_scrape(
    state: State, library: Path, door: Door, queue: Queue, redis: Redis, redis_server: RedisServer, tmp_path: Path
) -> None:
    (tmp_path / "aws_credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    bill = {"at": time.time(), "usd": [["Amazon EC2", True, 12.5], ["Amazon EC2", False, 0.5]]}
    await redis.hset(keys.AWS_COST, mapping={"bill": json.dumps(bill), "requests": "7"})
    async with running_exporter(tmp_path, redis_server.port, settings(state, library, door)) as exporter:
        up = "nvidia_smi_gpu_up"
        await until(exporter, lambda scrape: len(scrape.values.get(up, {})) == GPUS)
        await until_xid(exporter, state, 0)
        end = time.monotonic() + 2 * RATES_SECONDS  # what was told first may have known no GPU's name
        while "A10G" not in str(await redis.hget(keys.RATES, f"{NODE}/0")):
            assert time.monotonic() < end
            await asyncio.sleep(0.2)
        await work(queue, redis)
        # One answer more since the scrape before: of what has not changed there is no mean.
        door.counts = json.loads(
            json.dumps(COUNTS).replace('"2xx": 3}, "seconds_sum": 0.3', '"2xx": 4}, "seconds_sum": 0.7')
        )
        await asyncio.sleep(1.1)
        scrape = await exporter.scrape()
    missing = [name for name in CANONICAL + ALIASES if name not in scrape.values]
    assert missing == []
    assert {dict(labels)["gpu_id"] for labels in scrape.values[up]} == {str(number) for number in range(GPUS)}
    assert scrape.of("nvidia_smi_memory_used_bytes", gpu_id="3", uuid=uuid_of(3)) == 8000 * 2**20
    assert scrape.of("nvidia_smi_gpu_info", gpu_id="0", name="NVIDIA A10G", driver_version="550.54.15") == 1
    assert scrape.of("nginx_http_requests_total") == 42
    assert scrape.of("nginx_upstream_response_seconds_bucket", upstream=f"{NODE}/0", le="0.1") == 4
    assert scrape.of("nginx_upstream_response_seconds_bucket", upstream=f"{NODE}/0", le="+Inf") == 10
    assert scrape.of("nginx_upstream_response_seconds_sum", upstream=f"{NODE}/0") == 6.5
    assert scrape.of("nginx_upstream_responses_total", upstream=f"{NODE}/0", status="5xx") == 2
    assert scrape.of("nginx_upstream_response_milliseconds", upstream="gpu-02") == pytest.approx(400)
    assert scrape.of("nginx_upstream_response_milliseconds", upstream=f"{NODE}/0") is None
    assert scrape.of("animatediff_job_queue_length", queue="default") == 1
    assert scrape.of("animatediff_jobs_in_progress", queue="default") == 0
    assert scrape.of("animatediff_job_success_total", resolution=SIZE, model="sd15") == 1
    assert scrape.of("animatediff_job_failures_total", reason="OOM", resolution=SIZE) == 1
    assert scrape.of("animatediff_job_failures_total", reason="GPU_LOST", resolution=SIZE) == 0
    assert scrape.of("animatediff_job_failures_total", reason="CANCELLED") is None
    assert scrape.of("animatediff_job_wait_seconds_count", resolution=SIZE) == 2
    assert scrape.of("animatediff_job_duration_seconds_count", resolution=SIZE) == 1
    assert scrape.of("animatediff_video_seconds_generated_total", resolution=SIZE) == 2
    gpu_seconds = scrape.of("animatediff_gpu_seconds_total", resolution=SIZE, gpu_model="NVIDIA A10G")
    assert gpu_seconds is not None
    assert scrape.of("animatediff_job_cost_usd_total", resolution=SIZE) == pytest.approx(
        gpu_seconds * 1.2 / 3600, rel=0.01
    )
    assert scrape.of("animatediff_node_price_usd_per_hour", source="spot") == pytest.approx(GPUS * 1.2)
    assert scrape.of("animatediff_worker_last_heartbeat_timestamp_seconds", worker=f"{NODE}/1") == 0
    heard = scrape.of("animatediff_worker_last_heartbeat_timestamp_seconds", worker=f"{NODE}/0")
    assert heard is not None
    assert abs(heard - time.time()) < 30
    assert scrape.of("process_resident_memory_bytes", job="agent-0") is not None
    assert scrape.of("process_cpu_seconds_total", job="exporter") is not None
    assert scrape.of("animatediff_aws_cost_usd", service="Amazon EC2", final="true") == 12.5
    assert scrape.of("animatediff_cost_explorer_requests_total") == 7
    assert scrape.of("animatediff_node_state", node=f"{NODE}/1", pool="webui", state="DOWN") == 1
    assert scrape.of("animatediff_node_state", node=f"{NODE}/1", pool="webui", state="UP") == 0
    assert scrape.of("animatediff_node_state", node="gpu-02", pool="api", state="UNKNOWN") == 1
    assert scrape.of("animatediff_node_state_changes_total", node=f"{NODE}/1", state="DOWN") == 2


async def test_a_scrape_of_eight_gpus_is_quick(
    exporter: Running, queue: Queue, redis: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    await work(queue, redis)
    await until(exporter, lambda scrape: len(scrape.values.get("nvidia_smi_gpu_up", {})) == GPUS)
    scrapes = []
    for _ in range(15):
        await asyncio.sleep(1.05)  # whoever asks more often gets the same again
        scrapes.append(await exporter.scrape())
    took = sorted(1000 * scrape.seconds for scrape in scrapes)
    samples = sum(map(len, scrapes[-1].values.values()))
    with capsys.disabled():
        print(
            f"\n  {GPUS} GPUs, {samples} samples: {statistics.median(took):.1f} ms a scrape, {took[-1]:.1f} ms at most"
        )
    assert took[len(took) // 4] <= 50, "a busy machine makes some slower, but not three of four"


@pytest.mark.long
async def test_what_watching_costs(
    state: State, library: Path, door: Door, queue: Queue, redis_server: RedisServer, tmp_path: Path,
    redis: Redis, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Three workers, asked every 15 s as Prometheus does, for two minutes."""
    state.gpus = {uuid: state.gpus[uuid] for uuid in list(state.gpus)[:3]}
    state.write()
    async with running_exporter(tmp_path, redis_server.port, settings(state, library, door, workers=3)) as exporter:
        await work(queue, redis)
        await asyncio.sleep(10)  # its start is not its work
        before, since = exporter.cpu_seconds(), time.monotonic()
        for _ in range(8):
            await asyncio.sleep(15)
            await exporter.scrape()
        share = (exporter.cpu_seconds() - before) / (time.monotonic() - since)
        resident = exporter.resident_bytes()
    with capsys.disabled():
        print(f"\n  watching three workers costs {100 * share:.2f} % of one core and {resident >> 20} MiB")
    assert share < 0.02


async def test_a_gpu_that_hangs_does_not_hold_up_a_scrape(exporter: Running, state: State) -> None:
    up = "nvidia_smi_gpu_up"
    await until(exporter, lambda scrape: sum(scrape.values.get(up, {}).values()) == GPUS)
    await until_xid(exporter, state, 3)
    state.gpus[uuid_of(3)]["hang"] = 1
    state.write()
    took, deadline = [], time.monotonic() + 20
    while True:
        scrape = await exporter.scrape()
        took.append(scrape.seconds)
        if scrape.of(up, gpu_id="3") == 0:
            break
        assert time.monotonic() < deadline, scrape.text
        await asyncio.sleep(1.05)
    assert max(took) < 1, "a scrape waited for a GPU that hangs"
    assert sum(scrape.values[up].values()) == GPUS - 1
    rest = [name for name, known in scrape.values.items() if any(("gpu_id", "3") in labels for labels in known)]
    assert sorted(rest) == [up, "nvidia_smi_xid_errors_total"], "readings of a GPU that tells none"
    del state.gpus[uuid_of(3)]["hang"]
    state.write()
    await until(exporter, lambda scrape: scrape.of(up, gpu_id="3") == 1)


async def test_it_ends_in_time_with_a_gpu_that_hangs(
    state: State, library: Path, redis: Redis, redis_server: RedisServer, tmp_path: Path
) -> None:
    state.gpus[uuid_of(0)]["hang"] = 1
    state.write()
    async with running_exporter(tmp_path, redis_server.port, settings(state, library, None)) as exporter:
        await until(exporter, lambda scrape: scrape.of("nvidia_smi_gpu_up", gpu_id="0") == 0)


async def test_a_host_without_gpus_and_gateway(redis: Redis, redis_server: RedisServer, tmp_path: Path) -> None:
    async with running_exporter(tmp_path, redis_server.port, {"APPLIANCE_WORKERS": "2"}) as exporter:
        scrape = await exporter.scrape()
    assert [name for name in scrape.values if name.startswith(("nvidia_", "nginx_", "animatediff_node_"))] == []
    assert scrape.of("animatediff_job_queue_length", queue="default") == 0
    assert await redis.hgetall(keys.RATES) == {f"{NODE}/{number}": "0.000000 cpu" for number in range(2)}


async def test_without_the_articles_names(
    state: State, library: Path, door: Door, redis: Redis, redis_server: RedisServer, tmp_path: Path
) -> None:
    more = settings(state, library, door) | {"APPLIANCE_ARTICLE_NAMES": "false"}
    async with running_exporter(tmp_path, redis_server.port, more) as exporter:
        scrape = await until(exporter, lambda scrape: "nvidia_smi_utilization_gpu_ratio" in scrape.values)
    assert [name for name in ALIASES if name in scrape.values] == []


# --- sources that fail -----------------------------------------------------------------------------------------------


async def test_a_gateway_that_does_not_answer_costs_its_own_metrics(exporter: Running, door: Door) -> None:
    source = "animatediff_exporter_source_up"
    assert (await exporter.scrape()).of(source, source="gateway") == 1
    faults: dict[str, dict[str, object]] = {
        "silent": {"silent": True},
        "404, an older gateway": {"status": 404},
        "no JSON": {"raw": b"<html>"},
        "other JSON": {"raw": b"[1]"},
        "deep JSON": {"raw": b"[" * 100_000},
        "half a document": {"raw": json.dumps(COUNTS).encode()[:-20]},
        "endless": {"raw": json.dumps(COUNTS).encode() + b" " * (5 << 20)},
    }
    for what, fault in faults.items():
        vars(door).update({"silent": False, "status": 200, "raw": None} | fault)
        await asyncio.sleep(1.05)
        scrape = await exporter.scrape()
        assert scrape.of(source, source="gateway") == 0, what
        assert scrape.of(source, source="redis") == 1, what
        assert "nginx_http_requests_total" not in scrape.values, what
        assert scrape.seconds < 4, what
    vars(door).update({"silent": False, "status": 200, "raw": None})
    await asyncio.sleep(1.05)
    assert (await exporter.scrape()).of("nginx_http_requests_total") == 42


async def test_a_redis_that_is_away_costs_its_own_metrics(
    state: State, library: Path, door: Door, images: str, tmp_path: Path
) -> None:
    with RedisServer(images) as server:
        async with running_exporter(tmp_path, server.port, settings(state, library, door)) as exporter:
            source, up = "animatediff_exporter_source_up", "nvidia_smi_gpu_up"
            await until(exporter, lambda scrape: sum(scrape.values.get(up, {}).values()) == GPUS)
            for leave, come_back in ((server.pause, server.unpause), (server.stop, server.start)):
                await asyncio.to_thread(leave)
                await asyncio.sleep(1.05)
                scrape = await exporter.scrape()
                assert scrape.seconds < 4
                assert scrape.of(source, source="redis") == 0
                assert "animatediff_job_queue_length" not in scrape.values
                assert sum(scrape.values[up].values()) == GPUS
                assert scrape.of("nginx_http_requests_total") == 42
                await asyncio.to_thread(come_back)
                await until(exporter, lambda scrape: scrape.of(source, source="redis") == 1)


async def test_counts_outlive_the_exporter_and_do_not_go_back(
    state: State, library: Path, queue: Queue, redis: Redis, redis_server: RedisServer, tmp_path: Path
) -> None:
    """A failover may take the last moment away; Prometheus would take the lower count for a restart."""
    name, labels = "animatediff_job_success_total", {"resolution": SIZE, "model": "sd15"}
    more = settings(state, library, None)
    async with running_exporter(tmp_path, redis_server.port, more) as exporter:
        await work(queue, redis)
        await until(exporter, lambda scrape: scrape.of(name, **labels) == 1)
    async with running_exporter(tmp_path, redis_server.port, more) as exporter:
        assert (await exporter.scrape()).of(name, **labels) == 1
        await redis.hincrby(keys.counts(NODE), f"done\t{SIZE}\tsd15", -1)
        await asyncio.sleep(1.05)
        assert (await exporter.scrape()).of(name, **labels) == 1
        await redis.hincrby(keys.counts(NODE), f"done\t{SIZE}\tsd15", 2)
        await until(exporter, lambda scrape: scrape.of(name, **labels) == 2)


# --- who may look ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", b"Bearer \xff\xfe"],
)
async def test_strangers_see_nothing(exporter: Running, authorization: str | bytes | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"{exporter.url}/metrics", headers=headers)  # type: ignore[arg-type]
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert "nvidia" not in answer.text
        assert (await client.get(f"{exporter.url}/healthz")).json() == {"status": "ok"}
        assert (await client.post(f"{exporter.url}/metrics")).status_code == 405
        assert (await client.get(f"{exporter.url}/debug")).status_code == 404


async def test_many_that_ask_at_once_cost_one_scrape(exporter: Running, door: Door) -> None:
    asked = 0
    real = door._answer

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await real(reader, writer)

    door._answer = counted  # type: ignore[method-assign]
    with contextlib.suppress(FileNotFoundError):
        door.socket.unlink()
    async with door.open():
        await asyncio.sleep(1.05)
        scrapes = await asyncio.gather(*(exporter.scrape() for _ in range(10)))
    assert asked == 1
    assert len({scrape.text for scrape in scrapes}) == 1
