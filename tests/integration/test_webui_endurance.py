"""Hundreds of generations on one engine process, good and bad: memory stays flat and equal orders stay equal files.

    pytest tests/integration/test_webui_endurance.py --long -s      300 generations instead of 60, and the figures

Out of memory is real: the engine's address space is limited while an order comes that needs more.
"""

from __future__ import annotations

import importlib.util
import json
import random
import resource
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest

from tests.integration.webui_node import Node, generate, order, wait_for

NEEDED = ("torch", "diffusers", "transformers")
pytestmark = [
    pytest.mark.skipif(any(importlib.util.find_spec(name) is None for name in NEEDED), reason="needs torch, diffusers"),
    pytest.mark.timeout(1800),
]

SHORT, LONG = 60, 300
DRIFT = 1.05
PERIOD = 10  # after so many generations comes the order whose file and memory are compared
REFERENCE = {"prompt": "a red circle moves left", "width": 64, "height": 64, "frames": 8, "steps": 2, "seed": 11}
HEADROOM = 96 << 20
LORA = "endurance"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    from webui.demo_models import make_models

    root = tmp_path_factory.mktemp("node")
    list(make_models(root / "models"))
    make_lora(root / "models")
    environ = {"APPLIANCE_ENGINE": "diffusers", "APPLIANCE_CHECKPOINT": "tiny", "APPLIANCE_MOTION_MODULE": "tiny"}
    running = Node(root, **environ)
    try:
        running.wait("ok", 60)
        yield running
    finally:
        running.close()


def make_lora(models: Path) -> None:
    """Kohya's layout, for two attention layers of the tiny checkpoint."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(5)
    names = ["down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", "mid_block_attentions_0_proj_in"]
    tensors = {}
    for name, width in zip(names, (32, 64), strict=True):
        tensors[f"lora_unet_{name}.lora_down.weight"] = torch.randn(4, width)
        tensors[f"lora_unet_{name}.lora_up.weight"] = torch.randn(width, 4)
        tensors[f"lora_unet_{name}.alpha"] = torch.tensor(4.0)
    (models / "lora").mkdir(exist_ok=True)
    save_file(tensors, models / "lora" / f"{LORA}.safetensors")


def knows_loras(node: Node) -> bool:
    body = order(**REFERENCE, loras=[{"name": LORA, "weight": 0.8}])
    return node.client.post("/internal/generate", json=body, timeout=60).status_code == 200


class Hardship:
    """What is done to the engine, each with the only right answer to it."""

    def __init__(self, node: Node, seed: int) -> None:
        self.node = node
        self.random = random.Random(seed)
        self.loras = knows_loras(node)
        self.seen: dict[str, str] = {}  # order → checksum
        self.counts: Counter[str] = Counter()

    def some(self) -> Callable[[], None]:
        kinds = [self.good] * 12 + [self.with_lora] * (3 if self.loras else 0)
        return self.random.choice([*kinds, self.cancelled, self.cancelled, self.bad, self.bad, self.out_of_memory])

    def warm_up(self) -> None:
        """Every kind once, with the largest of the usual orders."""
        largest = {"width": 128, "height": 80, "frames": 8, "steps": 3}
        for formats in (["mp4"], ["gif", "webp"]):
            self.good(**largest, format=formats)
        if self.loras:
            self.with_lora()
        self.cancelled()
        self.bad()
        self.out_of_memory()
        self.counts.clear()

    def good(self, **more: Any) -> str:
        """From a small set of orders, so that equal ones come back after all kinds of others."""
        pick = self.random.choice
        request = {
            "prompt": pick(["a cat", "a white star falls"]),
            "width": pick([64, 96, 128]),
            "height": pick([64, 80]),
            "frames": pick([1, 4, 8]),
            "steps": pick([1, 2, 3]),
            "seed": pick([1, 2]),
            "format": pick([["mp4"], ["gif", "webp"]]),
            **more,
        }
        return self.compare("with LoRA" if "loras" in more else "good", request)

    def with_lora(self) -> None:
        self.good(loras=[{"name": LORA, "weight": self.random.choice([0.5, 1.0])}])

    def compare(self, kind: str, request: dict[str, Any]) -> str:
        body = order(**request)
        last = generate(self.node, body)[-1]
        assert last["event"] == "done", last
        folder = self.node.jobs / body["output_dir"]
        if last["files"][0]["media_type"] == "video/mp4":
            with av.open(str(folder / last["files"][0]["name"])) as video:
                assert len(list(video.decode(video=0))) == request["frames"]
        shutil.rmtree(folder)
        sums = " ".join(file["sha256"] for file in last["files"])
        assert self.seen.setdefault(json.dumps(request, sort_keys=True), sums) == sums, f"{request} made another file"
        self.counts[kind] += 1
        return sums

    def cancelled(self) -> None:
        body = order(**REFERENCE | {"steps": 100})
        with self.node.client.stream("POST", "/internal/generate", json=body) as stream:
            lines = stream.iter_lines()
            for _ in range(self.random.randrange(1, 6)):
                next(lines)
        wait_for(lambda: self.node.wait("ok")["busy"] is None, 5)
        assert not (self.node.jobs / body["output_dir"]).exists()
        self.counts["cancelled"] += 1

    def bad(self) -> None:
        field, value = self.random.choice(
            [("width", 63), ("frames", 0), ("model", "other"), ("loras", 1), ("init_image", "x"), ("colour", "red")]
        )
        answer = self.node.client.post("/internal/generate", json=order(**{field: value}))
        assert answer.status_code == 422
        assert {error["field"].partition("[")[0] for error in answer.json()["errors"]} == {f"request.{field}"}
        self.counts["bad"] += 1

    def out_of_memory(self) -> None:
        """PyTorch's allocator really fails: the order needs far more than the address space that is left."""
        pid = self.node.child()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + HEADROOM
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        try:
            last = generate(self.node, order(prompt="a", width=1024, height=1024, frames=32, steps=1))[-1]
        finally:
            resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert (last["event"], last["reason"]) == ("error", "HOST_OOM"), last
        self.node.wait("ok")
        assert self.node.child() == pid, "it must not need a restart"
        self.counts["out of memory"] += 1


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / (1 << 20)


def test_memory_stays_flat_and_equal_orders_stay_equal(node: Node, request: pytest.FixtureRequest) -> None:
    count = LONG if request.config.getoption("--long") else SHORT
    hardship = Hardship(node, seed=4)
    engine, server = node.child(), node.process.pid
    hardship.warm_up()
    first = hardship.compare("reference", REFERENCE)
    memory: list[tuple[float, float]] = []
    began = time.monotonic()
    for number in range(1, count + 1):
        hardship.some()()
        if number % PERIOD == 0:
            assert hardship.compare("reference", REFERENCE) == first
            memory.append((resident_mib(engine), resident_mib(server)))
    seconds = time.monotonic() - began
    assert node.child() == engine, "one process has done it all"
    print(f"\n{count} in {seconds:.0f} s: {dict(hardship.counts)}; LoRAs: {hardship.loras}")
    for name, samples in zip(("engine", "server"), zip(*memory, strict=True), strict=True):
        warm, end = statistics.median(samples[:2]), statistics.median(samples[-2:])
        print(f"{name}: {warm:.1f} MiB warm, {end:.1f} MiB at the end, {end / warm - 1:+.1%}, most {max(samples):.1f}")
        if count == LONG:
            print("  " + " ".join(f"{sample:.0f}" for sample in samples))
        assert end <= warm * DRIFT, f"{name}: {samples}"
