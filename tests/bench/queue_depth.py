"""What a deep queue costs: claim latency and bytes per waiting job, on one Redis out of our own image.

    python -m tests.bench.queue_depth [--depths 100,1000,10000,100000] [--claims 300] [--json]

Needs the images under the tag `test` (any test with the fixture `images` builds them). Prints what it measures and
asserts nothing: absolute times belong to the machine, the growth from row to row to the queue.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "images" / "services")]
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")  # its image is on a registry; the server is removed here

from redis.asyncio import Redis  # noqa: E402

from appliance.job import JobRequest, estimate_cost_ms, new_job_id, resolution_of  # noqa: E402
from appliance.queue import Claim, FailKind, Queue, Submission  # noqa: E402
from appliance.settings import QueueSettings  # noqa: E402
from tests.integration.redis_server import PASSWORD, RedisServer  # noqa: E402

SETTINGS = QueueSettings(lease_seconds=60, beat_seconds=1, queue_limit=1_000_000)
USERS = 50
AT_ONCE = 16
PROMPT = "a lighthouse on a cliff at dawn, slow pan, volumetric light, gulls in the distance, film grain, 35mm"


def new_submission(number: int) -> Submission:
    request = JobRequest.model_validate({"prompt": f"{PROMPT} {number}", "seed": number, "steps": 25})
    body = request.canonical_json()
    return Submission(
        job_id=new_job_id(),
        user=f"user-{number % USERS}",
        body=body,
        body_hash=hashlib.sha256(body.encode()).hexdigest(),
        priority=request.priority,
        cost_ms=estimate_cost_ms(request),
        idempotency_key=f"key-{number}",
        resolution=resolution_of(request),
    )


async def fill(queue: Queue, first: int, last: int) -> None:
    numbers = iter(range(first, last))

    async def submit_some() -> None:
        for number in numbers:
            assert (await queue.submit(new_submission(number))).status == "ok"

    await asyncio.gather(*(submit_some() for _ in range(AT_ONCE)))


async def time_claims(queue: Queue, count: int) -> list[float]:
    """Each claimed job is given back at no cost, so the depth stays as it is."""
    took = []
    for number in range(count):
        begin = time.perf_counter()
        claim = await queue.claim("bench/0", f"nonce-{number}-{begin}")
        took.append((time.perf_counter() - begin) * 1000)
        assert isinstance(claim, Claim)
        await queue.fail(claim, FailKind.RELEASE, "WORKER_LOST", "bench")
    return took


async def used_memory(client: Redis) -> int:
    return int((await client.info("memory"))["used_memory"])


async def script_microseconds(client: Redis) -> dict[str, float]:
    """Server time of all scripts together since the last reset."""
    stats: dict[str, Any] = await client.info("commandstats")
    calls = stats.get("cmdstat_evalsha", {"calls": 0, "usec": 0})
    return {"calls": float(calls["calls"]), "usec": float(calls["usec"])}


async def measure(server: RedisServer, depths: list[int], claims: int) -> list[dict[str, float]]:
    queue = server.queue(SETTINGS)
    client = Redis(host="127.0.0.1", port=server.port, password=PASSWORD, decode_responses=True)
    await queue.tick()
    empty, filled, rows = await used_memory(client), 0, []
    for depth in depths:
        begin = time.perf_counter()
        await fill(queue, filled, depth)
        seconds, added, filled = time.perf_counter() - begin, depth - filled, depth
        memory = await used_memory(client)
        await time_claims(queue, 20)
        await client.config_resetstat()
        took = sorted(await time_claims(queue, claims))
        scripts = await script_microseconds(client)
        rows.append(
            {
                "waiting": depth,
                "claim_p50_ms": statistics.median(took),
                "claim_p99_ms": took[int(len(took) * 0.99)],
                "server_us_per_claim_and_release": scripts["usec"] / claims,
                "bytes_per_job": (memory - empty) / depth,
                "submits_per_second": added / seconds,
            }
        )
    await queue.close()
    await client.aclose()
    return rows


def show(rows: list[dict[str, float]]) -> None:
    print(f"{'waiting':>9} {'claim p50 ms':>13} {'p99 ms':>8} {'server µs':>10} {'bytes/job':>10} {'submits/s':>10}")
    for row in rows:
        print(
            f"{row['waiting']:>9.0f} {row['claim_p50_ms']:>13.2f} {row['claim_p99_ms']:>8.2f} "
            f"{row['server_us_per_claim_and_release']:>10.0f} {row['bytes_per_job']:>10.0f} "
            f"{row['submits_per_second']:>10.0f}"
        )
    print("server µs: Redis' own time for one claim and one release; bytes with the request, listings and its key")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--depths", default="100,1000,10000,100000")
    parser.add_argument("--claims", type=int, default=300)
    parser.add_argument("--tag", default="test")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    depths = sorted(int(depth) for depth in options.depths.split(","))
    with RedisServer(options.tag) as server:
        rows = asyncio.run(measure(server, depths, options.claims))
    if options.json:
        print(json.dumps(rows))
    else:
        show(rows)


if __name__ == "__main__":
    main()
