"""A host whose storage is away when it starts, with a real systemd and a real Docker of its own: after a power cut both
come back, one later than the other."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from generator import processes
from generator.ops import boot, cluster
from generator.ops.cluster import Place
from generator.plan import plan
from generator.progress import Mode, Progress
from tests.unit.generator.clusters import three_hosts

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]
MACHINE = """\
FROM animatediff-ha/base:{tag}
RUN apt-get update && apt-get install --yes --no-install-recommends systemd docker.io docker-cli docker-compose iptables
# One cgroup hierarchy, as current systems have it, whatever this machine has.
RUN printf '%s\\n' 'umount -R /sys/fs/cgroup' 'mount -t cgroup2 cgroup /sys/fs/cgroup' 'mount -t tmpfs tmpfs /run' \\
      'exec /lib/systemd/systemd' > /start
ENV container=docker
ENTRYPOINT ["/bin/sh", "/start"]
"""
STORAGE = "/mnt/shared"
COMPOSE = f"""\
services:
  worker:
    image: animatediff-ha/base:{{tag}}
    command: [sleep, infinity]
    init: true
    restart: unless-stopped
    volumes: ["jobs:/jobs"]
volumes:
  jobs:
    driver_opts: {{{{type: none, o: bind, device: {STORAGE}/jobs}}}}
"""


def docker(*words: str, stdin: str = "") -> str:
    return processes.run(["docker", *words], timeout=200, stdin=stdin).strip()


class Machine:
    def __init__(self, tag: str) -> None:
        name = f"animatediff-test-machine:{tag}"
        docker("build", "--quiet", "--tag", name, "-", stdin=MACHINE.format(tag=tag))
        volumes = [word for path in ("/var/lib/docker", "/var/lib/containerd") for word in ("--volume", path)]
        self.container = docker("run", "--detach", "--privileged", "--cgroupns", "private", *volumes, name)
        self.shell = ("docker", "exec", "-i", self.container, "sh", "-c")

    def run(self, script: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.shell, script], input=stdin, capture_output=True, text=True, timeout=120, check=False
        )

    def until(self, script: str, seconds: float) -> bool:
        return cluster.wait_until(lambda: self.run(script).returncode == 0, seconds)

    def is_up(self) -> bool:
        return self.until("systemctl is-active --quiet docker", 60)

    def lose_power(self) -> None:
        docker("kill", self.container)
        docker("start", self.container)
        assert self.is_up(), self.run("journalctl --no-pager -n 50").stdout

    def works(self, within: float = 0.0) -> bool:
        return self.until("docker ps --format '{{.Names}}' | grep --quiet worker", within)


@pytest.fixture(scope="module")
def machine(images: str) -> Iterator[Machine]:
    machine = Machine(images)
    try:
        assert machine.is_up()
        with subprocess.Popen(["docker", "save", f"animatediff-ha/base:{images}"], stdout=subprocess.PIPE) as save:
            subprocess.run([*machine.shell, "docker load"], stdin=save.stdout, check=True, capture_output=True)
        assert save.returncode == 0
        yield machine
    finally:
        docker("rm", "--force", "--volumes", machine.container)


@pytest.fixture
def place(machine: Machine, images: str, tmp_path: Path) -> Iterator[Place]:
    """A worker that is at work, on a storage that is there."""
    the_plan = plan(three_hosts())
    (tmp_path / "gpu-01").mkdir()
    (tmp_path / "gpu-01" / "compose.yaml").touch()
    (found,) = cluster.places(the_plan, tmp_path, only="gpu-01")
    place = Place(found.project, found.host, found.folder, machine.shell, 10, mounts_shared_storage=True)
    folder = place.remote_folder
    machine.run(f"mkdir -p {folder} {STORAGE}/jobs && cat > {folder}/compose.yaml", COMPOSE.format(tag=images))
    up = machine.run(f"cd {folder} && docker compose up --detach")
    assert up.returncode == 0, up.stderr
    yield place
    boot.remove([place], Progress(Mode.QUIET))
    machine.run(f"cd {folder} && docker compose down --volumes")


def after_a_power_cut(machine: Machine) -> None:
    machine.run(f"mv {STORAGE} {STORAGE}.away")
    machine.lose_power()
    assert not machine.works()


def test_without_the_unit_docker_tries_once(machine: Machine, place: Place) -> None:
    """Should this fail one day, Docker goes on trying by itself and the unit can go."""
    after_a_power_cut(machine)
    machine.run(f"mv {STORAGE}.away {STORAGE}")
    assert not machine.works(within=15)


def test_a_storage_that_comes_late_is_waited_for(machine: Machine, place: Place) -> None:
    boot.settle([place], Progress(Mode.QUIET))
    name = boot.unit_name(place)
    assert machine.run(f"systemd-analyze verify {boot.UNITS}/{name}").stderr == ""
    after_a_power_cut(machine)
    assert machine.until(f"systemctl show --property NRestarts {name} | grep -v '=0$'", 60), "it has tried again"
    assert not machine.works()
    machine.run(f"mv {STORAGE}.away {STORAGE}")
    assert machine.works(within=60), machine.run(f"journalctl --no-pager -u {name}").stdout
    assert machine.until(f"systemctl is-active --quiet {name}", 10)


def test_a_host_that_is_taken_down_stays_down(machine: Machine, place: Place) -> None:
    progress = Progress(Mode.QUIET)
    boot.settle([place], progress)
    boot.remove([place], progress)
    boot.remove([place], progress)
    name = boot.unit_name(place)
    assert machine.run(f"systemctl is-enabled {name}; ls {boot.UNITS}/*/{name}").stdout == "not-found\n"


def test_nothing_is_left_where_nothing_shared_is_mounted_any_more(machine: Machine, place: Place) -> None:
    progress = Progress(Mode.QUIET)
    boot.settle([place], progress)
    boot.settle([Place(place.project, place.host, place.folder, place.ssh, 10)], progress)
    assert machine.run(f"ls {boot.UNITS} | grep animatediff").stdout == ""
