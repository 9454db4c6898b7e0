"""`up`, `down`, `logs` and the health of services: docker compose in each host's folder.

A host whose address belongs to this machine is worked on here; any other through ssh, in REMOTE_FOLDER.
"""

from __future__ import annotations

import hashlib
import shlex
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from generator import processes
from generator.docker import Container, Engine
from generator.errors import ToolError, Unhealthy, UserError
from generator.ops import leftovers, replication
from generator.planned import UID, HostPlan, Plan
from generator.progress import Progress
from generator.secret_marks import READ_WHILE_RUNNING

REMOTE_FOLDER = "/opt/animatediff-ha"
SSH = "ssh -o BatchMode=yes -o ConnectTimeout=5 -o ServerAliveInterval=5 -o ServerAliveCountMax=3 -l root"
ONE_SHOT = "appliance.one-shot"
"""Label of the services that end by themselves; any other that has ended, even with 0, is missed."""
VENDOR_PROFILE = "vendor"
"""Of all services whose images are not ours, and of what is there for them alone; each has another one of its own, as
`HostPlan.vendor_images` has them."""
QUEUE, SENTINEL = "redis", "sentinel"
"""Made anew alone, before the others: some versions of compose make all anew that depend on it, and leave it stopped
while these end their jobs."""
COPY_SECONDS = 120.0
PS_SECONDS = 30.0
STARTS_SECONDS = 60.0
WAIT_SECONDS = 600
PULL_SECONDS = 3600
"""Images of some gigabytes through a slow line."""


@dataclass(frozen=True)
class Place:
    """Where one host's folder is run. `ssh` is the command that reaches it, its address last; empty: this machine.
    `mounts_shared_storage`: NFS or CephFS, which may be away when the host starts."""

    project: str
    host: HostPlan
    folder: Path
    ssh: tuple[str, ...]
    stop_grace_seconds: int
    mounts_shared_storage: bool = False

    @property
    def remote_folder(self) -> str:
        return f"{REMOTE_FOLDER}/{self.project}/{self.host.name}"

    def compose(self, *args: str, vendors: Collection[str] = (VENDOR_PROFILE,)) -> list[str]:
        """The argument list of `docker compose ARGS` there; of vendors' images it sees those of the profiles only."""
        profiles = vendors if self.host.vendor_images else ()
        profile = [word for name in profiles for word in ("--profile", name)]
        if not self.ssh:
            return ["docker", "compose", "--project-directory", str(self.folder), *self._files(), *profile, *args]
        command = ["docker", "compose", "--project-directory", self.remote_folder, *profile, *args]
        # With files named by --project-directory alone, compose looks in the working directory.
        return [*self.ssh, f"cd {shlex.quote(self.remote_folder)} && {shlex.join(command)}"]

    def docker(self, *args: str) -> list[str]:
        """The argument list of `docker ARGS` there."""
        return [*self.ssh, shlex.join(["docker", *args])] if self.ssh else ["docker", *args]

    def shell(self, script: str) -> list[str]:
        """The argument list that has a shell there run `script`."""
        return [*self.ssh, script] if self.ssh else ["sh", "-c", script]

    def copy(self) -> str | None:
        """The shell pipeline that brings the folder to the host; None where it is already there."""
        if not self.ssh:
            return None
        there = shlex.quote(self.remote_folder)
        receive = f"install -d -m 0700 {there} && tar -C {there} -xpf - --numeric-owner"
        left = shlex.join(f"--exclude=./secrets/{name}" for name in sorted(READ_WHILE_RUNNING))
        return f"tar -C {shlex.quote(str(self.folder))} {left} -cf - . | {shlex.join([*self.ssh, receive])}"

    def renew(self) -> None:
        """Bring what running containers read again, into the very files that they have mounted. Nothing is changed
        there before all of a file has arrived; here it is in its place already."""
        for name in sorted(READ_WHILE_RUNNING):
            file = self.folder / "secrets" / name
            if not self.ssh or not file.exists():
                continue
            content = file.read_text(encoding="utf-8")
            there = shlex.quote(f"{self.remote_folder}/secrets/{name}")
            digest = hashlib.sha256(content.encode()).hexdigest()
            receive = (
                f"umask 077 && cat > {there}.new && echo {digest} {there}.new | sha256sum --check --status && "
                f"cat {there}.new > {there} && chown {UID}:{UID} {there} && rm {there}.new"
            )
            processes.run([*self.ssh, receive], timeout=COPY_SECONDS, stdin=content)

    def _files(self) -> list[str]:
        names = ("compose.yaml", "compose.override.yaml")
        return [part for name in names if (self.folder / name).exists() for part in ("--file", str(self.folder / name))]


def places(plan: Plan, out: Path, *, only: str | None = None, ssh: str = SSH) -> list[Place]:
    """One place per host, or the one that `only` names. Their folders must have been rendered."""
    if only is not None and only not in plan.by_name:
        raise UserError(f'"{only}" is not a host of {plan.cluster.name}; one of: {", ".join(plan.by_name)}')
    found = []
    for host in plan.hosts:
        folder = out / host.name
        if only in (None, host.name):
            if not (folder / "compose.yaml").is_file():
                raise UserError(f"{folder} has not been rendered; run `python -m generator render` first")
            reach = () if is_local(host.address) else (*shlex.split(ssh), host.address)
            shares = host.runs_storage and any(volume.options for volume in plan.cluster.volumes)
            grace = plan.cluster.stop_grace_seconds
            found.append(Place(plan.cluster.name, host, folder.resolve(), reach, grace, shares))
    return found


def is_local(address: str) -> bool:
    """Whether this machine owns `address`: then it is also the one it would speak to it from. Nothing is sent.

    Binding would not tell: a gateway with net.ipv4.ip_nonlocal_bind may bind every address.
    """
    if IPv4Address(address).is_loopback:
        return True
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            return False
        return str(probe.getsockname()[0]) == address


def up(targets: Sequence[Place], progress: Progress, *, recreate: bool = False) -> None:
    """Start every host and wait until all services are healthy; `Unhealthy` with their last log lines otherwise."""
    options = ["--detach", "--wait", "--wait-timeout", str(WAIT_SECONDS), "--remove-orphans"]
    options += ["--force-recreate"] if recreate else []
    bare = [str(place.folder) for place in targets if not (place.folder / "secrets").is_dir()]
    if bare:
        raise UserError(f"no secrets in {', '.join(bare)}; run `python -m generator secrets` first")
    start_resting_queues(targets, progress)
    for place in targets:
        with progress.task(f"up {place.host.name}") as task:
            task.update("copying")
            bring(place)
            vendors = _fetch_vendor_images(place, progress, task.update)
            if not recreate and _queue_runs(place):
                _compose(place, ["up", *options, "--no-deps", QUEUE], task.update, PULL_SECONDS + WAIT_SECONDS, vendors)
            _compose(place, ["up", *options], task.update, PULL_SECONDS + WAIT_SECONDS, vendors)
            replication.wait_in_step(place, task.update)
            task.finish("healthy")


def start_resting_queues(targets: Sequence[Place], progress: Progress) -> None:
    """All Redis and Sentinels where none runs, before anything waits for one of them: the last master may be on the
    last host. A host that cannot be reached, or lacks the image and so has no queue, starts when its turn comes.

    Where one runs it may be the master, and others that came before its turn might be promoted with nothing in them
    while it is made anew."""
    resting = [place for place in targets if replication.is_replicated(place)]
    if len(resting) < 2 or any(_queue_runs(place) for place in resting):
        return
    with progress.task("start the queue") as task:
        for service in (QUEUE, SENTINEL):
            for place in list(resting):
                task.update(f"{service} on {place.host.name}")
                try:
                    if service == QUEUE:
                        bring(place)
                    argv = place.compose("up", "--detach", "--no-deps", "--pull", "never", service)
                    processes.run(argv, timeout=WAIT_SECONDS)
                except ToolError:
                    resting.remove(place)
        task.finish(f"on {', '.join(place.host.name for place in resting) or 'no host yet'}")


def bring(place: Place) -> None:
    """Its folder to the host, where that is another machine; what is no longer in it goes there, too."""
    pipeline = place.copy()
    if pipeline is not None:
        processes.run(["bash", "-o", "pipefail", "-c", pipeline], timeout=COPY_SECONDS)
        place.renew()
        script, listed = leftovers.removal(place.folder, place.remote_folder)
        processes.run(place.shell(script), timeout=COPY_SECONDS, stdin=listed)


def replace_services(place: Place, services: Sequence[str], on_line: Callable[[str], None], *, seconds: int) -> None:
    """These of one host as they are rendered now, the old ones stopped first; `Unhealthy` with their last log lines
    where they are not healthy within `seconds`. Without `services`: all that have changed."""
    bring(place)
    only = ["--no-deps", *services] if services else ["--remove-orphans"]
    args = ["up", "--detach", "--wait", "--wait-timeout", str(seconds), *only]
    command = place.compose(*args, vendors=() if services else vendors_there(place))
    try:
        for line in processes.stream(command, timeout=seconds + place.stop_grace_seconds + STARTS_SECONDS):
            on_line(line.strip())
    except ToolError as error:
        raise Unhealthy(f"{error}\n{last_lines(place, services)}") from error
    if not services or "redis" in services:
        replication.wait_in_step(place, on_line)


def last_lines(place: Place, services: Sequence[str], lines: int = 15) -> str:
    """What the services said last, for a person; why not, where they cannot be asked."""
    try:
        argv = place.compose("logs", "--no-color", "--no-log-prefix", "--tail", str(lines), *services)
        return processes.run(argv, timeout=PS_SECONDS).strip()
    except ToolError as error:
        return str(error)


def restarts(place: Place, services: Sequence[str]) -> int:
    """How often Docker has started these again by itself."""
    found = processes.run(place.compose("ps", "--all", "--quiet", *services), timeout=PS_SECONDS).split()
    if not found:
        return 0
    counts = processes.run(place.docker("inspect", "--format", "{{.RestartCount}}", *found), timeout=PS_SECONDS)
    return sum(int(count) for count in counts.split())


def _queue_runs(place: Place) -> bool:
    """Of a host that cannot be reached: no."""
    if not place.host.queue:
        return False
    try:
        return bool(processes.run(place.compose("ps", "--quiet", QUEUE), timeout=PS_SECONDS).strip())
    except ToolError:
        return False


def _fetch_vendor_images(place: Place, progress: Progress, on_line: Callable[[str], None]) -> list[str]:
    """The profiles whose images are there, or could be pulled. The host's own services must not wait for somebody's
    registry."""
    profiles = place.host.vendor_images
    there = [name for name in profiles if _could_fetch(place, profiles[name], progress, on_line)]
    return [VENDOR_PROFILE] if there and len(there) == len(profiles) else there


def vendors_there(place: Place) -> list[str]:
    """The profiles whose images need not be pulled."""

    def is_there(image: str) -> bool:
        try:
            processes.run(place.docker("image", "inspect", "--format", "{{.Id}}", image), timeout=PS_SECONDS)
        except ToolError:
            return False
        return True

    profiles = place.host.vendor_images
    return [name for name in profiles if all(is_there(image) for image in profiles[name].values())]


def _could_fetch(place: Place, images: Mapping[str, str], progress: Progress, on_line: Callable[[str], None]) -> bool:
    try:
        # Pulls what is missing, and only that; in a step of its own, or one image would keep all services down.
        for line in processes.stream(place.compose("create", *images), timeout=PULL_SECONDS):
            on_line(line.strip())
    except ToolError as error:
        last = error.stderr_tail.strip().rpartition("\n")[2]
        there = f"{', '.join(images.values())} is not on {place.host.name} and cannot be pulled ({last})"
        progress.warn(
            f"{place.host.name} runs without {', '.join(images)}: {there}; `docker load` it there and `up` again"
        )
        return False
    return True


def renew(targets: Sequence[Place], progress: Progress) -> list[str]:
    """Bring what running containers read again to every host; returns those that could not be reached, with why."""
    failed = []
    for place in targets:
        with progress.task(f"keys {place.host.name}") as task:
            try:
                place.renew()
                task.finish("there")
            except ToolError as error:
                task.finish("not reached")
                failed.append(f"{place.host.name}: {error}")
    return failed


def down(targets: Sequence[Place], progress: Progress, *, volumes: bool) -> None:
    """Stop and remove; with `volumes` also every job, model and queue entry of these hosts."""
    for place in targets:
        with progress.task(f"down {place.host.name}") as task:
            options = ["--volumes"] if volumes else []
            _compose(place, ["down", "--remove-orphans", *options], task.update, WAIT_SECONDS)
            task.finish("removed")


def _compose(
    place: Place,
    args: Sequence[str],
    on_line: Callable[[str], None],
    seconds: float,
    vendors: Collection[str] = (VENDOR_PROFILE,),
) -> None:
    """`seconds` for the work itself; running jobs are given their time to end on top."""
    try:
        for line in processes.stream(place.compose(*args, vendors=vendors), timeout=seconds + place.stop_grace_seconds):
            if line.strip():
                on_line(line.strip())
    except ToolError as error:
        raise Unhealthy(f"{error}\n{_unhealthy_logs(place)}") from error


def _unhealthy_logs(place: Place) -> str:
    """The last lines of every service that is not well: what a person would look at next."""
    if place.ssh:
        return f"look with: {shlex.join(place.compose('ps'))}"
    engine = Engine()
    try:
        sick = [one for one in engine.containers(place.project) if not well(one)]
        return "\n".join(
            f"--- {one.service} ({one.state} {one.health})\n{engine.logs(one.id, lines=10)}" for one in sick
        )
    except ToolError as error:
        return str(error)


def well(container: Container) -> bool:
    return is_well(container.state, container.health, container.exit_code, one_shot=ONE_SHOT in container.labels)


def is_well(state: str, health: str, exit_code: int, *, one_shot: bool) -> bool:
    """A one-shot that ended with 0 is as well as a service that runs and answers its health check."""
    if one_shot and state == "exited":
        return exit_code == 0
    return state == "running" and health in ("", "healthy")


def logs(place: Place, services: Sequence[str], *, follow: bool, lines: int) -> Iterator[str]:
    options = ["--follow"] if follow else []
    yield from processes.stream(place.compose("logs", "--tail", str(lines), *options, *services))


def wait_until(check: Callable[[], bool], seconds: float, *, every: float = 0.5) -> bool:
    """Whether `check` came true in time."""
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            return False
        time.sleep(every)
    return True
