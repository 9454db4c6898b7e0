from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import cast

import pytest

from generator.docker import Engine, Image
from generator.errors import ToolError, UserError
from generator.ops import images
from generator.ops.build_inputs import context_files, inputs_hash, is_ignored, parse_dockerignore
from generator.ops.image_plan import INPUTS_LABEL, Build, build_args, plan_builds
from generator.ops.torch_choice import TorchChoice, choose_cuda, choose_torch, find_wheels
from generator.progress import Mode, Progress

ROOT = Path("/appliance")
WHEEL = Path("/wheels/torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl")
DEBIAN = TorchChoice("debian")
FROM_WHEEL = TorchChoice("wheel", suite="bookworm", wheel=WHEEL)


def plan(*names: str, torch: TorchChoice = DEBIAN) -> tuple[Build, ...]:
    secrets = [("ca_bundle", Path("/ca.crt"))]
    return plan_builds(ROOT, names, tag="1.2", revision="abc", torch=torch, wheels=Path("/w"), secrets=secrets)


def test_only_what_is_asked_for_and_the_bases_below_it() -> None:
    assert [build.name for build in plan("redis", "services")] == ["base", "services", "redis"]
    assert [build.name for build in plan("webui-cpu", torch=FROM_WHEEL)] == ["base-bookworm", "webui-cpu"]
    everything = plan(*images.DEFAULT_NAMES, torch=FROM_WHEEL)
    assert [build.name for build in everything] == [
        "base",
        "base-bookworm",
        "webui-cpu",
        "webui-synthetic",
        "services",
        "gateway",
        "acme",
        "keepalived",
        "redis",
        "prometheus",
        "alertmanager",
        "node-exporter",
        "redis-exporter",
        "blackbox-exporter",
    ]
    assert {build.name: build.needs for build in everything}["webui-cpu"] == ("base-bookworm",)


def test_cuda_stands_on_nvidias_image_and_needs_no_base() -> None:
    (build,) = plan("webui-cuda", torch=choose_cuda("https://index.example/cu118"))
    assert (build.needs, build.bases) == ((), ())
    assert build.args == (("TORCH_SOURCE", "index"), ("TORCH_CUDA_INDEX", "https://index.example/cu118"))


def test_an_unknown_image_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="no such image: webui; there are base, webui-cuda"):
        plan("webui")


def test_the_exact_command_of_a_build() -> None:
    build = plan("webui-cpu", torch=FROM_WHEEL)[-1]
    assert build_args(build, "hash", proxies=["https_proxy"]) == [
        "--load",
        "--provenance=false",
        "--file=/appliance/images/webui/Dockerfile",
        "--target=cpu",
        "--build-arg=BASE=animatediff-ha/base:trixie",
        "--build-arg=CPU_BASE=animatediff-ha/base:bookworm",
        "--build-arg=TORCH_SOURCE=wheel",
        "--build-arg=VERSION=1.2",
        "--build-arg=REVISION=abc",
        "--build-arg=https_proxy",
        "--build-context=wheels=/w",
        "--build-context=sdapi=/appliance/images/sdapi",
        "--secret=id=ca_bundle,src=/ca.crt",
        "--label=appliance.inputs=hash",
        "--tag=animatediff-ha/webui-cpu:1.2",
        "/appliance/images/webui",
    ]


def test_a_registry_also_serves_as_cache() -> None:
    args = build_args(plan("redis")[-1], "hash", cache="registry.example/animatediff-ha/redis:1.2")
    assert "--cache-from=type=registry,ref=registry.example/animatediff-ha/redis:1.2" in args
    assert "--cache-to=type=inline" in args


def test_the_base_is_built_on_the_raw_one() -> None:
    base = plan("redis")[0]
    assert base.args == (("BASE", "animatediff-ha/base-raw:trixie"), ("SUITE", "trixie"))
    assert base.tags == ("animatediff-ha/base:trixie", "animatediff-ha/base:1.2")


# --- torch -----------------------------------------------------------------------------------------------------


def test_a_wheel_decides_the_base() -> None:
    chosen = choose_torch("auto", None, [WHEEL], "x86_64")
    assert (chosen.source, chosen.suite, chosen.wheel) == ("wheel", "bookworm", WHEEL)
    newer = Path("/w/torch-2.14.0+cpu-cp313-cp313-manylinux_2_28_x86_64.whl")
    assert choose_torch("auto", "https://index", [WHEEL, newer], "x86_64").suite == "trixie"


@pytest.mark.parametrize(
    "name",
    [
        "torch-2.13.0+cpu-cp312-cp312-manylinux_2_28_x86_64.whl",  # no Debian release has this Python
        "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_aarch64.whl",  # another machine
        "torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl",  # with gigabytes of CUDA
        "torch-2.13.0+cpu-cp311-cp311-win_amd64.whl",
        "torchvision-0.28.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl",
    ],
)
def test_a_wheel_that_does_not_fit_is_not_taken(name: str) -> None:
    chosen = choose_torch("auto", None, [Path("/w", name)], "x86_64")
    assert (chosen.source, chosen.suite) == ("debian", "trixie")
    assert "five times slower" in chosen.notice


def test_torch_by_option() -> None:
    assert choose_torch("debian", "https://index", [WHEEL], "x86_64").source == "debian"
    assert choose_torch("index", "https://index", [WHEEL], "x86_64").index == "https://index"
    assert choose_torch("auto", "https://index", [], "x86_64").source == "index"
    for option, hint in (("index", "--torch-index URL"), ("wheel", "PIP_FIND_LINKS"), ("pip", "none of auto")):
        with pytest.raises(UserError, match=hint):
            choose_torch(option, None, [], "x86_64")


def test_an_index_password_never_reaches_the_image() -> None:
    for choose in (choose_cuda, lambda index: choose_torch("index", index, [], "x86_64")):
        with pytest.raises(UserError) as caught:
            choose("https://me:hunter2@index")
        assert "hunter2" not in str(caught.value)
        with pytest.raises(UserError) as caught:  # a token in the place of a name
            choose("https://hunter2@index")
        assert "hunter2" not in str(caught.value)


def test_find_links_may_hold_urls_and_missing_folders(tmp_path: Path) -> None:
    (tmp_path / WHEEL.name).touch()
    (tmp_path / "numpy-2.0-cp311-cp311-linux_x86_64.whl").touch()
    environment = {"PIP_FIND_LINKS": f"https://x/links.html /does/not/exist file://{tmp_path}"}
    assert find_wheels(environment) == [tmp_path / WHEEL.name]
    assert find_wheels({}) == []


# --- inputs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("requirements.txt", False),
        ("appliance/__main__.py", False),
        ("appliance/queue/scripts/claim.lua", False),
        ("appliance/queue/__pycache__/x.cpython-313.pyc", True),
        ("tests/test_x.py", True),
        ("notes.md", True),
        ("appliance.md", True),
    ],
)
def test_dockerignore(path: str, ignored: bool) -> None:
    rules = parse_dockerignore("# a comment\n*\n!requirements.txt\n!appliance\n\n**/__pycache__\n**/*.pyc\n")
    assert is_ignored(PurePosixPath(path), rules) is ignored


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "Dockerfile").write_text("FROM x\n")
    (tmp_path / ".dockerignore").write_text("*\n!code\n**/*.pyc\n")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("a")
    return tmp_path


def hash_of(context: Path, *facts: str) -> str:
    return inputs_hash(context, context / "Dockerfile", facts)


def test_what_the_build_cannot_see_does_not_count(context: Path) -> None:
    before = hash_of(context)
    (context / "code" / "a.pyc").write_text("compiled")
    (context / "notes").write_text("x")
    os.utime(context / "code" / "a.py", (1, 1))
    assert hash_of(context) == before
    assert context_files(context) == [context / "code" / "a.py"]


def test_whatever_the_build_can_see_counts(context: Path) -> None:
    seen = {hash_of(context), hash_of(context, "BASE=1"), hash_of(context, "BASE=2"), hash_of(context, "BASE", "=1")}
    (context / "code" / "a.py").chmod(0o755)
    seen.add(hash_of(context))
    (context / "code" / "a.py").write_text("b")
    seen.add(hash_of(context))
    (context / "code" / "a.py").rename(context / "code" / "b.py")
    seen.add(hash_of(context))
    (context / "code" / "c.py").symlink_to("b.py")
    seen.add(hash_of(context))
    (context / "Dockerfile").write_text("FROM y\n")
    seen.add(hash_of(context))
    assert len(seen) == 9


# --- running ---------------------------------------------------------------------------------------------------


@dataclass
class Recorder:
    """Stands where the engine stands: keeps images in a dictionary."""

    images: dict[str, Image] = field(default_factory=dict)
    built: list[str] = field(default_factory=list)
    broken: str = ""
    fault: Exception = field(default_factory=lambda: ToolError(["docker", "buildx"], 1, "E: no such package"))

    def image(self, ref: str) -> Image | None:
        return self.images.get(ref)

    def tag(self, ref: str, new: str) -> None:
        self.images[new] = self.images[ref]

    def build(self, args: list[str], *, timeout: float | None = None) -> list[str]:
        tags = [arg.removeprefix("--tag=") for arg in args if arg.startswith("--tag=")]
        if self.broken and self.broken in tags[0]:
            raise self.fault
        labels = dict(arg.split("=", 2)[1:] for arg in args if arg.startswith("--label="))
        self.built.append(tags[0])
        for tag in tags:
            self.images[tag] = Image(f"sha256:{tags[0]}{len(self.built)}", labels, 1, "amd64")
        return ["#1 [internal] load", "#2 [1/2] FROM x", "#2 DONE 0.1s"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("base", "services", "gateway", "redis", "webui"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "Dockerfile").write_text("FROM x\n")
    return tmp_path


def build(
    recorder: Recorder, root: Path, *, refresh: bool = False, tag: str = "1.2", jobs: int = 2
) -> list[images.BuildResult]:
    recorder.images.setdefault("animatediff-ha/base-raw:trixie", Image("sha256:raw", {}, 1, "amd64"))
    builds = plan_builds(
        root, ("services", "redis"), tag=tag, revision="abc", torch=DEBIAN, wheels=root / "none", secrets=[]
    )
    runner = images._Runner(cast(Engine, recorder), Progress(Mode.QUIET), None, refresh)
    return runner.run_all(builds, jobs)


def test_a_second_run_builds_nothing(root: Path) -> None:
    recorder = Recorder()
    assert [result.built for result in build(recorder, root)] == [True, True, True]
    assert [result.built for result in build(recorder, root)] == [False, False, False]
    assert [result.built for result in build(recorder, root, refresh=True)] == [True, True, True]


def test_the_base_comes_first_and_a_new_one_renews_all(root: Path) -> None:
    recorder = Recorder()
    build(recorder, root)
    assert recorder.built[0] == "animatediff-ha/base:trixie"
    recorder.images["animatediff-ha/base-raw:trixie"] = Image("sha256:newer", {}, 1, "amd64")
    assert [result.built for result in build(recorder, root)] == [True, True, True]


def test_a_change_builds_that_image_alone(root: Path) -> None:
    recorder = Recorder()
    build(recorder, root)
    (root / "images" / "redis" / "entrypoint").write_text("x")
    assert {result.name: result.built for result in build(recorder, root)} == {
        "base": False,
        "services": False,
        "redis": True,
    }


def test_an_up_to_date_base_gets_a_new_tag_all_the_same(root: Path) -> None:
    recorder = Recorder()
    build(recorder, root)
    build(recorder, root, tag="1.3")
    assert recorder.images["animatediff-ha/base:1.3"] == recorder.images["animatediff-ha/base:1.2"]


def test_a_failure_stops_what_stands_on_it_and_tells_the_log(root: Path) -> None:
    recorder = Recorder(broken="base")
    with pytest.raises(images.BuildsFailed, match=r"image base: docker buildx: exit status 1\n  \| E: no such package"):
        build(recorder, root)
    assert recorder.built == []


def test_after_a_failure_nothing_new_starts(root: Path) -> None:
    recorder = Recorder(broken="services")
    with pytest.raises(images.BuildsFailed):
        build(recorder, root, jobs=1)
    assert recorder.built == ["animatediff-ha/base:trixie"]


def test_one_of_two_side_by_side_may_fail(root: Path) -> None:
    recorder = Recorder(broken="services")
    with pytest.raises(images.BuildsFailed, match="image services"):
        build(recorder, root)
    assert "animatediff-ha/base:trixie" in recorder.built


def test_what_the_disk_says_is_told_like_a_build_s_failure(root: Path) -> None:
    recorder = Recorder(broken="services", fault=OSError(28, "No space left on device"))
    with pytest.raises(images.BuildsFailed, match=r"image services: .*No space left on device"):
        build(recorder, root)


def test_a_folder_that_is_not_the_appliance(tmp_path: Path) -> None:
    builds = plan_builds(tmp_path, ("redis",), tag="1", revision="", torch=DEBIAN, wheels=tmp_path, secrets=[])
    with pytest.raises(UserError, match="images/redis/Dockerfile: missing"):
        images.check_contexts(builds)


def test_the_tracker_shows_the_newest_step_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(Mode.PLAIN).task("redis") as task:
        tracker = images.Tracker(task)
        for line in (
            "#1 [internal] load build definition",
            "#1 DONE 0.0s",
            "#2 [1/2] FROM base",
            "#3 [2/2] RUN  apt-get   install x",
            "#3 1.2 Get:1 http://mirror",
            "#2 CACHED",
            "not a step",
            "#3 DONE 1.5s",
        ):
            tracker.read(line)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == ["redis: starting", "redis: [1/2] FROM base", "redis: [2/2] RUN apt-get install x"]
    assert lines[3].startswith("redis: done (")


def test_a_wheel_context_holds_that_wheel_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / WHEEL.name
    wheel.write_text("zip")
    (tmp_path / "other.whl").touch()
    monkeypatch.delenv("BUILD_CA_BUNDLE", raising=False)
    monkeypatch.setenv("BUILD_PIP_CONF", str(wheel))
    with images._inputs_folder(TorchChoice("wheel", wheel=wheel)) as (wheels, secrets):
        assert [path.name for path in wheels.iterdir()] == [wheel.name]
        named = dict(secrets)
        assert named["ca_bundle"].is_file()
        assert named["pip_conf"] == wheel
    assert not wheels.exists()
    assert wheel.read_text() == "zip"


@pytest.mark.parametrize("variable", ["BUILD_CA_BUNDLE", "BUILD_PIP_CONF"])
def test_a_named_file_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Another user's home, or a ~ in quotes: what is built without it may come from elsewhere."""
    monkeypatch.setenv(variable, str(tmp_path / "missing"))
    with pytest.raises(UserError, match=variable), images._inputs_folder(TorchChoice("debian")):
        pass


def test_labels_carry_the_name_the_plan_uses() -> None:
    assert f"--label={INPUTS_LABEL}=h" in build_args(plan("redis")[-1], "h")
