"""A webui server with the synthetic engine, run as the container runs it, and what tests do with it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "t0ken-of-this-test"


class Node:
    """One running server with secrets of its own, and volumes of its own unless it is given a jobs volume to share."""

    def __init__(self, root: Path, markers: bool = True, jobs: Path | None = None, **environ: str) -> None:
        self.jobs, self.models = jobs or root / "jobs", root / "models"
        for folder in (self.jobs, self.models, root / "secrets"):
            folder.mkdir(parents=True, exist_ok=folder != self.jobs or jobs is not None)
        if markers:
            self.put_markers()
        (root / "secrets" / "cluster_token").write_text(TOKEN + "\n")
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.environ = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}/images/webui:{ROOT}/images/sdapi",
            "APPLIANCE_NODE_NAME": "<gpu-01>",
            "APPLIANCE_ENGINE": "synthetic",
            "APPLIANCE_LISTEN": f"127.0.0.1:{self.port}",
            "APPLIANCE_SECRETS_DIR": str(root / "secrets"),
            "APPLIANCE_JOBS_DIR": str(self.jobs),
            "APPLIANCE_MODELS_DIR": str(self.models),
            "APPLIANCE_SCRATCH_DIR": str(root / "scratch"),
            "APPLIANCE_SYNTHETIC_STEP_SECONDS": "0.05",
            **environ,
        }
        self.log = (root / "log").open("w")
        command = [sys.executable, "-m", "webui", "serve"]
        self.process = subprocess.Popen(command, env=self.environ, stderr=self.log, start_new_session=True)
        # One client each: reading the machine's certificates anew for every ping is what takes time.
        url = f"http://127.0.0.1:{self.port}"
        self.stranger = httpx.Client(base_url=url, timeout=15)
        self.client = httpx.Client(base_url=url, timeout=15, headers={"Authorization": f"Bearer {TOKEN}"})

    def put_markers(self) -> None:
        for folder in (self.jobs, self.models):
            (folder / ".animatediff-ha").touch()

    def ping(self) -> httpx.Response | None:
        try:
            return self.stranger.get("/internal/ping", timeout=1)
        except httpx.TransportError:
            return None

    def wait(self, status: str, seconds: float = 10) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            answer = self.ping()
            body: dict[str, Any] = answer.json() if answer is not None else {}
            return body if body.get("status") == status else None

        found: dict[str, Any] = wait_for(reached, seconds)
        return found

    def written_log(self) -> str:
        return Path(self.log.name).read_text()

    def child(self) -> int:
        """The engine's process; while one is being replaced, the next."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        found: list[str] = wait_for(lambda: children.read_text().split())
        return int(found[0])

    def close(self) -> None:
        self.client.close()
        self.stranger.close()
        self.process.kill()
        self.process.wait()
        self.log.close()


def wait_for(happened: Callable[[], Any], seconds: float = 10) -> Any:
    deadline = time.monotonic() + seconds
    while not (result := happened()):
        assert time.monotonic() < deadline, f"did not happen within {seconds} s"
        time.sleep(0.02)
    return result


def order(job: str | None = None, **request: Any) -> dict[str, Any]:
    job = job or str(uuid.uuid4())
    request = {"prompt": "a cat", "width": 64, "height": 64, "frames": 3, "steps": 4} | request
    return {"job": job, "fence": 5, "output_dir": f"2026/11/22/{job}/attempts/5", "request": request}


def generate(node: Node, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = node.client.post("/internal/generate", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def resumed_from(events: list[dict[str, Any]]) -> int:
    """Told when the attempt starts; a busy machine may show a sign of life before."""
    return int(next(event for event in events if event["event"] == "started")["resumed_from"])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
