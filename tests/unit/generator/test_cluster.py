from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from generator import cli
from generator.docker import parse_container
from generator.errors import ToolError, Unhealthy, UserError
from generator.ops import boot, cluster, replication
from generator.ops.upgrade_hosts import images_of
from generator.plan import plan
from generator.progress import Mode, Progress
from generator.render import render
from generator.sources import ROOT, read_sources
from tests.unit.generator.clusters import logged, one_host, three_hosts, with_dashboards

IN_STEP = "role:slave\nmaster_link_status:up\n"


def in_step(argv: list[str], **_: object) -> str:
    """Nothing runs, and Redis has what it needs."""
    return IN_STEP if "--no-TTY" in argv[-1] else ""


def rendered(out: Path, *hosts: str) -> Path:
    for host in hosts:
        (out / host).mkdir()
        (out / host / "compose.yaml").touch()
    return out


def test_this_machine_is_worked_on_directly(tmp_path: Path) -> None:
    (place,) = cluster.places(plan(one_host()), rendered(tmp_path, "demo"))
    folder = tmp_path / "demo"
    named = ["docker", "compose", "--project-directory", str(folder), "--file", str(folder / "compose.yaml")]
    assert place.compose("ps") == [*named, "ps"]
    assert place.copy() is None
    (folder / "compose.override.yaml").touch()
    assert place.compose("ps") == [*named, "--file", str(folder / "compose.override.yaml"), "ps"]


def test_other_hosts_are_reached_through_ssh(tmp_path: Path) -> None:
    (tmp_path / "it's").mkdir()
    out = rendered(tmp_path / "it's", "gpu-02")
    (place,) = cluster.places(plan(three_hosts()), out, only="gpu-02", ssh="ssh -J 'jump host'")
    there = "/opt/animatediff-ha/studio/gpu-02"
    assert place.compose("up", "--detach") == [
        *("ssh", "-J", "jump host", "192.168.1.11"),
        f"cd {there} && docker compose --project-directory {there} up --detach",
    ]
    pipeline = place.copy()
    assert pipeline is not None
    assert subprocess.run(["bash", "-n", "-c", pipeline], check=False).returncode == 0
    assert "tar -xpf" not in pipeline.split("|")[0]
    assert "'jump host' 192.168.1.11" in pipeline


def test_a_boot_starts_what_is_there_and_changes_nothing(tmp_path: Path) -> None:
    """Whatever the folder's name means to systemd. The unit at work: `tests/integration/test_boot.py`."""
    (tmp_path / "100%").mkdir()
    (here,) = cluster.places(plan(one_host()), rendered(tmp_path / "100%", "demo"))
    lines = boot.unit_text(here, ["vendor"]).splitlines()
    assert f"WorkingDirectory={tmp_path}/100%%/demo" in lines
    assert "ExecStart=/usr/bin/env docker compose --profile vendor up --detach --no-recreate --pull never" in lines
    (there,) = cluster.places(plan(three_hosts()), rendered(tmp_path, "gpu-02"), only="gpu-02")
    assert "WorkingDirectory=/opt/animatediff-ha/studio/gpu-02" in boot.unit_text(there, []).splitlines()
    assert (here.mounts_shared_storage, there.mounts_shared_storage) == (False, True)


def test_every_host_has_to_be_rendered(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has not been rendered"):
        cluster.places(plan(three_hosts()), rendered(tmp_path, "gpu-01"))


def test_an_unknown_host_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='"gpu-04" is not a host of studio; one of: gpu-01, gpu-02, gpu-03'):
        cluster.places(plan(three_hosts()), tmp_path, only="gpu-04")


def test_nothing_is_started_before_its_secrets_are_there(tmp_path: Path) -> None:
    targets = cluster.places(plan(one_host()), rendered(tmp_path, "demo"))
    with pytest.raises(UserError, match="run `python -m generator secrets` first"):
        cluster.up(targets, Progress(Mode.QUIET))


@pytest.mark.parametrize(("address", "local"), [("127.0.0.1", True), ("192.0.2.1", False)])
def test_is_local(address: str, local: bool) -> None:
    assert cluster.is_local(address) is local


@pytest.mark.parametrize(
    ("state", "health", "exit_code", "one_shot", "well"),
    [
        ("running", "healthy", 0, False, True),
        ("running", "", 0, True, True),
        ("running", "starting", 0, False, False),
        ("running", "unhealthy", 0, False, False),
        ("exited", "", 0, True, True),
        ("exited", "", 0, False, False),
        ("exited", "", 1, True, False),
        ("paused", "healthy", 0, False, False),
        ("restarting", "", 0, False, False),
    ],
)
def test_well(state: str, health: str, exit_code: int, one_shot: bool, well: bool) -> None:
    labels = {"appliance.one-shot": "true"} if one_shot else {}
    found = {"Id": "1", "Name": "/x", "Config": {"Image": "i", "Labels": labels}}
    described = {"Status": state, "Health": {"Status": health}, "ExitCode": exit_code, "OOMKilled": False, "Pid": 0}
    assert cluster.well(parse_container({**found, "State": described})) is well


def test_wait_until_has_a_deadline() -> None:
    assert not cluster.wait_until(lambda: False, 0.05, every=0.01)
    answers = iter([False, True])
    assert cluster.wait_until(lambda: next(answers), 5, every=0.01)


def grafana_host(tmp_path: Path) -> cluster.Place:
    (place,) = cluster.places(plan(with_dashboards()), rendered(tmp_path, "gpu-02"), only="gpu-02", ssh="ssh")
    (place.folder / "secrets").mkdir()
    return place


def test_a_vendor_s_services_are_stopped_and_listed_with_the_others(tmp_path: Path) -> None:
    assert grafana_host(tmp_path).compose("ps")[-1].endswith("/gpu-02 --profile vendor ps")
    (other,) = cluster.places(plan(with_dashboards()), rendered(tmp_path, "gpu-01"), only="gpu-01", ssh="ssh")
    assert "--profile" not in other.compose("ps")[-1]


@pytest.mark.parametrize("can_be_pulled", [True, False])
def test_a_host_runs_without_a_vendor_s_image_that_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], can_be_pulled: bool
) -> None:
    place, commands = grafana_host(tmp_path), []

    def stream(argv: list[str], **_: object) -> list[str]:
        commands.append(argv[-1].partition("/gpu-02 ")[2].partition("/gpu-02 ")[2])
        if "create" in argv[-1] and not can_be_pulled:
            raise ToolError(argv, 18, "grafana Pulling\ndial tcp: no such host")
        return []

    monkeypatch.setattr(cluster.processes, "stream", stream)
    monkeypatch.setattr(cluster.processes, "run", in_step)
    cluster.up([place], Progress(Mode.PLAIN))
    profile = "--profile vendor " if can_be_pulled else ""
    assert commands == [
        "--profile vendor create grafana",
        f"{profile}up --detach --wait --wait-timeout 600 --remove-orphans",
    ]
    said = " ".join(capsys.readouterr().err.split())
    told = (
        "gpu-02 runs without grafana: grafana/grafana:11.6.0 is not on gpu-02 and cannot be pulled (dial tcp: no such"
    )
    assert (told in said) != can_be_pulled


def logs_host(tmp_path: Path) -> cluster.Place:
    (place,) = cluster.places(plan(logged()), rendered(tmp_path, "gpu-03"), only="gpu-03", ssh="ssh")
    (place.folder / "secrets").mkdir()
    return place


def told(command: list[str]) -> str:
    """What docker compose is told on the other machine."""
    return command[-1].rpartition("/gpu-03 ")[2]


def test_of_two_vendors_one_may_be_lacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, commands = logs_host(tmp_path), []

    def stream(argv: list[str], **_: object) -> list[str]:
        commands.append(told(argv))
        if argv[-1].endswith("create elasticsearch logstash"):
            raise ToolError(argv, 18, "dial tcp: no such host")
        return []

    monkeypatch.setattr(cluster.processes, "stream", stream)
    monkeypatch.setattr(cluster.processes, "run", in_step)
    cluster.up([place], Progress(Mode.PLAIN))
    assert commands[-1] == "--profile filebeat up --detach --wait --wait-timeout 600 --remove-orphans"
    said = " ".join(capsys.readouterr().err.split())
    assert "gpu-03 runs without elasticsearch, logstash: elastic/elasticsearch:9.2.1, elastic/logstash:9.2.1 is" in said
    assert "without filebeat" not in said


@pytest.mark.parametrize("lacking", ["", "filebeat", "logstash"])
def test_an_upgrade_of_a_host_starts_no_vendor_s_image_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    """It must not fail where the host has never had it, nor pull within the time that services have to start."""
    place, commands = logs_host(tmp_path), []

    def run(argv: list[str], **_: object) -> str:
        if lacking and "image inspect" in argv[-1] and f"/{lacking}:" in argv[-1]:
            raise ToolError(argv, 1, "No such image")
        return IN_STEP

    monkeypatch.setattr(cluster.processes, "run", run)
    monkeypatch.setattr(cluster.processes, "stream", lambda argv, **_: commands.append(told(argv)) or [])
    cluster.replace_services(place, (), lambda _: None, seconds=9)
    profiles = [name for name in ("filebeat", "elasticsearch") if lacking not in place.host.vendor_images[name]]
    words = "".join(f"--profile {name} " for name in profiles)
    assert commands == [f"{words}up --detach --wait --wait-timeout 9 --remove-orphans"]


@pytest.mark.parametrize(
    ("running", "recreate", "alone"), [("id", False, True), ("", False, False), ("id", True, False)]
)
def test_a_running_redis_is_made_anew_before_who_depends_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: str, recreate: bool, alone: bool
) -> None:
    """Stopped with them it would stay so until they have ended their jobs, which they tell it."""
    place, commands = logs_host(tmp_path), []
    monkeypatch.setattr(cluster.processes, "stream", lambda argv, **_: commands.append(told(argv)) or [])
    monkeypatch.setattr(cluster.processes, "run", lambda argv, **_: running if "ps --quiet" in argv[-1] else IN_STEP)
    cluster.up([place], Progress(Mode.QUIET), recreate=recreate)
    options = "--detach --wait --wait-timeout 600 --remove-orphans" + " --force-recreate" * recreate
    first = [f"--profile vendor up {options} --no-deps redis"] if alone else []
    assert commands[2:] == [*first, f"--profile vendor up {options}"]


def test_an_upgrade_needs_no_image_that_a_host_can_do_without() -> None:
    (files,) = (files for name, files in render(plan(logged()), read_sources()) if name == "gpu-03")
    images = images_of(files)
    assert "animatediff-ha/services:0.1.0" in images
    assert not [image for image in images if image.startswith("elastic/")]


def replace_all(place: cluster.Place) -> None:
    for services in ([], []):
        cluster.replace_services(place, services, lambda _: None, seconds=9)


@pytest.mark.parametrize("work", [lambda place: cluster.up([place, place], Progress(Mode.QUIET)), replace_all])
def test_no_host_follows_one_whose_redis_is_not_in_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[cluster.Place], None]
) -> None:
    """Else the next one may be the last that has what was acknowledged."""
    place, commands = logs_host(tmp_path), []
    monkeypatch.setattr(replication, "IN_STEP_SECONDS", 0.01)
    monkeypatch.setattr(cluster.processes, "run", lambda argv, **_: in_step(argv).replace(":up", ":down"))
    monkeypatch.setattr(cluster.processes, "stream", lambda argv, **_: commands.append(told(argv)) or [])
    with pytest.raises(Unhealthy, match="gpu-03 is not in step"):
        work(place)
    assert sum(" up " in f" {command} " for command in commands) == 1


def test_nothing_changes_one_by_one_that_the_hosts_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are looked at, also for the sake of one: it would be the only one with the new ones."""
    calls: list[object] = []
    monkeypatch.setattr(cli.shared_secrets, "refuse_one_by_one", lambda found: calls.append(len(found)))
    monkeypatch.setattr(cli.cluster, "up", lambda targets, *_, **__: calls.append([one.host.name for one in targets]))
    monkeypatch.setattr(cli.boot, "settle", lambda *_: None)
    file, out = ROOT / "config/cluster.example.yaml", tmp_path / "out"
    cli.render(file, out)
    cli.up(file, out, "gpu-01", "ssh", recreate=False)
    assert calls == [3, ["gpu-01"]]


def test_all_redis_that_rest_are_started_before_any_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second host cannot be reached; the third is started all the same."""
    the_plan, commands = plan(three_hosts()), []
    found = cluster.places(the_plan, rendered(tmp_path, *the_plan.by_name), ssh="ssh")
    for place in found:
        (place.folder / "secrets").mkdir()

    def run(argv: list[str], **_: object) -> str:
        if the_plan.by_name["gpu-02"].address in argv:
            raise ToolError(argv, 255, "no route to host")
        if " up " in argv[-1]:
            commands.append(f"{argv[1]} {argv[-1].split()[-1]}")
        return in_step(argv)

    def stream(argv: list[str], **_: object) -> list[str]:
        commands.append("waits")
        return []

    monkeypatch.setattr(cluster.processes, "run", run)
    monkeypatch.setattr(cluster.processes, "stream", stream)
    monkeypatch.setattr(cluster, "bring", lambda place: None)
    cluster.up(found[:1] + found[2:], Progress(Mode.QUIET))
    first, third = (the_plan.by_name[name].address for name in ("gpu-01", "gpu-03"))
    assert commands[:4] == [f"{host} {service}" for service in ("redis", "sentinel") for host in (first, third)]
    commands.clear()
    with monkeypatch.context() as patched:
        patched.setattr(cluster, "_queue_runs", lambda place: place.host.name == "gpu-01")
        cluster.start_resting_queues(found, Progress(Mode.QUIET))
        assert commands == [], "the one that runs has everything: the empty ones come after it"
    cluster.start_resting_queues(found, Progress(Mode.QUIET))
    assert commands == [f"{host} {service}" for service in ("redis", "sentinel") for host in (first, third)]
