"""Schemathesis against the running API: whatever a client sends, the answer is the one that OpenAPI promises."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import re
import sys
from itertools import cycle
from pathlib import Path

import pytest

from appliance import storage
from appliance.job import attempt_folder
from appliance.queue import Claim, FailKind, Queue
from tests.integration.api_process import KEYS, client_of, running_api
from tests.integration.redis_server import RedisServer, queue, redis, redis_server

__all__ = ["queue", "redis", "redis_server"]
pytestmark = [pytest.mark.docker, pytest.mark.timeout(1500)]

SEED = 20261123
EXAMPLES, LONG_EXAMPLES = 6, 300
CONTENT = b"not really a video"
# What JSON Schema cannot say is refused with 422: text that is no picture, the size of metadata as JSON, the budget of
# pixel-frames. All but the last are schemathesis's own defaults.
UNSAYABLE = "POST /api/v1/jobs"
FINE = ["2xx", "3xx", "401", "403", "404", "409", "429", "5xx", "422"]
# A cancelled job is still there to be read: DELETE ends it, it does not erase it.
NOT_MEANT = "use_after_free"


async def work(queue: Queue, jobs_dir: Path) -> None:
    """A worker without a GPU: jobs end soon in every way, so that streams end and every kind of answer is met."""
    for number in cycle(range(4)):
        claim = await queue.claim("gpu-01/0", os.urandom(8).hex())
        if not isinstance(claim, Claim):
            await asyncio.sleep(0.05)
        elif number == 0:
            await queue.fail(claim, FailKind.PERMANENT, "INVALID_INPUT", "no such sampler")
        elif number == 1:
            await queue.fail(claim, FailKind.OOM, "OOM", "CUDA out of memory")
        else:
            await asyncio.to_thread(write_result, jobs_dir, claim)
            commit = storage.read_commit(jobs_dir, claim.job_id)
            assert commit is not None
            await queue.commit(claim, commit.to_json())


def write_result(jobs_dir: Path, claim: Claim) -> None:
    folder = jobs_dir / attempt_folder(claim.job_id, claim.fence)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "video.mp4").write_bytes(CONTENT)
    file = storage.ResultFile("video.mp4", "video/mp4", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    storage.write_commit(jobs_dir, storage.new_commit(claim.job_id, claim.fence, "gpu-01/0", (file,)))


def configuration(key: str) -> str:
    lines = ["[auth.openapi.bearer]", f'bearer = "{key}"', ""]
    lines += ["[[operations]]", f'include-name = "{UNSAYABLE}"']
    return "\n".join([*lines, f"checks.positive_data_acceptance.expected-statuses = {json.dumps(FINE)}", ""])


async def fuzz(url: str, name: str, folder: Path, *, examples: int, seed: int) -> str:
    async with client_of(url, name) as client:
        (folder / "openapi.json").write_text((await client.get("/api/v1/openapi.json")).text)
    config = folder / "schemathesis.toml"
    config.write_text(configuration(KEYS[name]))
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("schemathesis")),
        *("--config-file", str(config), "run", "openapi.json", "--url", url),
        *("--checks", "all", "--exclude-checks", NOT_MEANT, "--max-examples", str(examples), "--seed", str(seed)),
        *("--continue-on-failure", "--request-timeout", "20", "--warnings", "off", "--no-color"),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    text = said.decode()
    assert process.returncode == 0, f"{text}\n\nseed {seed}"
    return text


@pytest.mark.parametrize("name", ["ada", "root"])
async def test_every_answer_is_as_documented(
    redis_server: RedisServer, queue: Queue, tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    thorough = request.config.getoption("--long")
    examples, seed = (LONG_EXAMPLES, random.getrandbits(32)) if thorough else (EXAMPLES, SEED)
    where = {"APPLIANCE_REDIS_ADDRESS": f"127.0.0.1:{redis_server.port}"}
    async with running_api(tmp_path, where) as url:
        worker = asyncio.create_task(work(queue, tmp_path / "jobs"))
        try:
            said = await fuzz(url, name, tmp_path, examples=examples, seed=seed)
        finally:
            worker.cancel()
            ended = (await asyncio.gather(worker, return_exceptions=True))[0]
    assert isinstance(ended, asyncio.CancelledError), ended
    print(f"\n{name}, seed {seed}:", *re.findall(r"^.*(?:generated|Seed|Operations|Tested).*$", said, re.MULTILINE))
    assert '"log.level": "error"' not in (tmp_path / "api.log").read_text()
