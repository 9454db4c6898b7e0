"""Which images to build, from what and in which order: data, before anything is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from generator.errors import UserError
from generator.ops.base_image import RAW
from generator.ops.torch_choice import TorchChoice

REPOSITORY = "animatediff-ha"
INPUTS_LABEL = "appliance.inputs"
BASE_SUITE = "trixie"
SUITES = (BASE_SUITE, "bookworm")

# Name → folder under images/, target stage. The order is the order of starting: the longest first.
IMAGES = {
    "webui-cuda": ("webui", "cuda"),
    "webui-cpu": ("webui", "cpu"),
    "webui-synthetic": ("webui", "synthetic"),
    "services": ("services", ""),
    "gateway": ("gateway", ""),
    "acme": ("acme", ""),
    "keepalived": ("keepalived", ""),
    "redis": ("redis", ""),
    "prometheus": ("prometheus", ""),
    "alertmanager": ("alertmanager", ""),
    "node-exporter": ("exporters", "node"),
    "redis-exporter": ("exporters", "redis"),
    "blackbox-exporter": ("exporters", "blackbox"),
}
MONITORING = ("prometheus", "alertmanager", "node-exporter", "redis-exporter", "blackbox-exporter")
DEFAULT_NAMES = ("services", "gateway", "acme", "keepalived", "redis", *MONITORING, "webui-synthetic", "webui-cpu")


@dataclass(frozen=True)
class Build:
    name: str
    context: Path
    dockerfile: Path
    target: str
    args: tuple[tuple[str, str], ...]
    stamps: tuple[tuple[str, str], ...]
    """Arguments that only describe the image: a new commit alone is no reason to build again."""
    contexts: tuple[tuple[str, Path], ...]
    secrets: tuple[tuple[str, Path], ...]
    tags: tuple[str, ...]
    bases: tuple[str, ...]
    """Images it stands on; a new one is a reason to build again."""
    needs: tuple[str, ...]
    """Builds that must be done before."""


def plan_builds(
    root: Path,
    names: Sequence[str],
    *,
    tag: str,
    revision: str,
    torch: TorchChoice,
    wheels: Path,
    secrets: Sequence[tuple[str, Path]],
) -> tuple[Build, ...]:
    """The named images and the bases they need, bases first."""
    unknown = sorted(set(names) - {*IMAGES, "base"})
    if unknown:
        raise UserError(f"no such image: {', '.join(unknown)}; there are {', '.join(['base', *IMAGES])}")
    stamps = (("VERSION", tag), ("REVISION", revision))
    images = []
    for name in (name for name in IMAGES if name in names):
        folder, target = IMAGES[name]
        suite = _suite(name, torch)
        images.append(
            Build(
                name=name,
                context=root / "images" / folder,
                dockerfile=root / "images" / folder / "Dockerfile",
                target=target,
                args=_args(name, torch),
                stamps=stamps,
                contexts=_contexts(root, name, wheels),
                secrets=tuple(secrets),
                tags=(f"{REPOSITORY}/{name}:{tag}",),
                bases=(_base_ref(suite),) if suite else (),
                needs=(_base_name(suite),) if suite else (),
            )
        )
    needed = {name for image in images for name in image.needs} | {name for name in names if name == "base"}
    bases = (_base_build(root, suite, tag, stamps) for suite in SUITES if _base_name(suite) in needed)
    return (*bases, *images)


def _base_build(root: Path, suite: str, tag: str, stamps: tuple[tuple[str, str], ...]) -> Build:
    return Build(
        name=_base_name(suite),
        context=root / "images" / "base",
        dockerfile=root / "images" / "base" / "Dockerfile",
        target="",
        args=(("BASE", f"{RAW}:{suite}"), ("SUITE", suite)),
        stamps=stamps,
        contexts=(),
        secrets=(),
        tags=(_base_ref(suite), *((f"{REPOSITORY}/base:{tag}",) if suite == BASE_SUITE else ())),
        bases=(f"{RAW}:{suite}",),
        needs=(),
    )


def _contexts(root: Path, name: str, wheels: Path) -> tuple[tuple[str, Path], ...]:
    """Folders beside the image's own."""
    shared = (("sdapi", root / "images" / "sdapi"),) if IMAGES[name][0] in ("webui", "services") else ()
    return ((("wheels", wheels),) if name == "webui-cpu" else ()) + shared


def _base_ref(suite: str) -> str:
    return f"{REPOSITORY}/base:{suite}"


def _base_name(suite: str) -> str:
    return "base" if suite == BASE_SUITE else f"base-{suite}"


def _suite(name: str, torch: TorchChoice) -> str | None:
    """Debian suite of our own base below an image; None where NVIDIA's image is the base."""
    if name == "webui-cuda":
        return None
    return torch.suite if name == "webui-cpu" else BASE_SUITE


def _args(name: str, torch: TorchChoice) -> tuple[tuple[str, str], ...]:
    if name == "webui-cuda":
        return (("TORCH_SOURCE", "index"), ("TORCH_CUDA_INDEX", torch.cuda_index))
    base = ("BASE", _base_ref(BASE_SUITE))
    if name == "webui-cpu":
        index = (("TORCH_INDEX", torch.index),) if torch.index else ()
        return (base, ("CPU_BASE", _base_ref(torch.suite)), ("TORCH_SOURCE", torch.source), *index)
    return (base,)


def build_args(build: Build, inputs: str, *, cache: str | None = None, proxies: Sequence[str] = ()) -> list[str]:
    """Arguments of `docker buildx build`. `cache` names a registry image to take layers from.

    Proxy variables go by name alone: their values, which may hold a password, come from the environment.
    """
    args = ["--load", "--provenance=false", f"--file={build.dockerfile}"]
    args += [f"--target={build.target}"] if build.target else []
    args += [f"--build-arg={key}={value}" for key, value in (*build.args, *build.stamps)]
    args += [f"--build-arg={name}" for name in proxies]
    args += [f"--build-context={name}={path}" for name, path in build.contexts]
    args += [f"--secret=id={name},src={path}" for name, path in build.secrets]
    args += [f"--label={INPUTS_LABEL}={inputs}"]
    args += [f"--cache-from=type=registry,ref={cache}", "--cache-to=type=inline"] if cache else []
    args += [f"--tag={tag}" for tag in build.tags]
    return [*args, str(build.context)]
