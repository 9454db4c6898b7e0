"""The api as the process that a container runs, on a loopback port."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import httpx

from tests.integration.redis_server import IMAGES, PASSWORD, SERVICES, free_ports

KEYS = {"ada": "ada-key", "bob": "bob-key", "root": "root-key"}
READY_SECONDS = 15
MAIN = "import sys; from appliance.__main__ import main; sys.exit(main(['api']))"


def write_keys(path: Path) -> None:
    lines = [
        f"{name}:{'operator' if name == 'root' else 'user'}:{hashlib.sha256(key.encode()).hexdigest()}\n"
        for name, key in KEYS.items()
    ]
    path.write_text("# keys\n" + "".join(lines))


def malloc_settings() -> dict[str, str]:
    """Those of the image."""
    found = dict(re.findall(r"(MALLOC_\w+)=(\w+)", Path(IMAGES, "services/Dockerfile").read_text()))
    assert found
    return found


@contextlib.asynccontextmanager
async def running_api(folder: Path, redis: Mapping[str, str], before: str = "") -> AsyncIterator[str]:
    """Its URL. `redis` says where Redis is; its log is in `folder`. Asked to end at the end, it has to exit 0. `before`
    is what its process does first."""
    (folder / "redis_password").write_text(PASSWORD)
    write_keys(folder / "api_keys")
    (port,) = free_ports(1)
    environment = {
        **malloc_settings(),
        "PYTHONPATH": SERVICES,
        "APPLIANCE_SECRETS_DIR": str(folder),
        "APPLIANCE_NODE_NAME": "test",
        "APPLIANCE_REDIS_USERNAME": "default",
        "APPLIANCE_JOBS_DIR": str(folder / "jobs"),
        "APPLIANCE_LISTEN": f"127.0.0.1:{port}",
        "APPLIANCE_QUEUE_LIMIT": "1000000",
        **redis,
    }
    command = ["-c", before + MAIN] if before else ["-m", "appliance", "api"]
    with (folder / "api.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, env=environment, stdout=log, stderr=log
        )
        (folder / "api.pid").write_text(str(process.pid))
        try:
            async with client_of(f"http://127.0.0.1:{port}", "ada") as client:
                await wait_until_ready(client)
            yield f"http://127.0.0.1:{port}"
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 15) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def client_of(url: str, name: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, headers={"X-Api-Key": KEYS[name]}, trust_env=False)


async def wait_until_ready(client: httpx.AsyncClient) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            if (await client.get("/readyz")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, f"the api was not ready within {READY_SECONDS} s"
        await asyncio.sleep(0.1)
