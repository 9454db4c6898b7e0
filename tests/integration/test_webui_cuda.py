"""The CUDA variant as far as a machine without GPU, registry and CUDA index can take it: base and torch replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from generator.docker import Engine
from generator.ops.torch_choice import choose_torch, find_wheels
from generator.sources import ROOT

pytestmark = [pytest.mark.docker, pytest.mark.long, pytest.mark.timeout(1800)]
IMAGE = "animatediff-ha/webui-cuda:stand-in"


@pytest.fixture(scope="module")
def image(engine: Engine, images: str) -> Iterator[str]:
    choice = choose_torch("auto", None, find_wheels(), "x86_64")
    if choice.wheel is None:
        pytest.skip("needs a torch wheel in a folder that PIP_FIND_LINKS names")
    authorities = Path("/etc/ssl/certs/ca-certificates.crt")
    arguments = ["--load", "--target=cuda", f"--tag={IMAGE}", f"--build-context=wheels={choice.wheel.parent}"]
    arguments += [f"--build-context=sdapi={ROOT / 'images/sdapi'}"]
    arguments += ["--build-arg=TORCH_SOURCE=wheel", f"--build-arg=CUDA_BASE=animatediff-ha/base:{choice.suite}"]
    arguments += [f"--secret=id=ca_bundle,src={authorities}"] if authorities.exists() else []
    for _ in engine.build([*arguments, str(ROOT / "images/webui")], timeout=1500):
        pass
    yield IMAGE
    engine.remove_image(IMAGE)


def test_it_is_a_cuda_image_of_ours(engine: Engine, image: str) -> None:
    found = json.loads(engine.run("image", "inspect", image))[0]["Config"]
    assert found["User"] == "10001:10001"
    assert found["StopSignal"] == "SIGTERM"
    assert {"APPLIANCE_ENGINE=diffusers", "APPLIANCE_DEVICE=cuda"} <= set(found["Env"])
    assert "healthcheck" in found["Healthcheck"]["Test"]


def test_the_pipeline_imports_and_a_missing_gpu_is_a_plain_message(engine: Engine, image: str) -> None:
    python = ("run", "--rm", "--network=none", "--entrypoint=/opt/venv/bin/python", image, "-c")
    code = "import torch, diffusers, av; diffusers.AnimateDiffPipeline; print(torch.cuda.is_available())"
    assert engine.run(*python, code, timeout=180).strip() == "False"
