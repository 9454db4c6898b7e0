"""The only door to Docker: a typed, policy-free engine behind the `docker` command line.

The command line and not the HTTP API, because compose and buildx exist only there, because it speaks `ssh://`
to other hosts with the user's own keys, and because a failed argument list can be pasted into a shell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from generator import processes
from generator.errors import STDERR_TAIL_LINES, ToolError, Unhealthy

COMPOSE_PROJECT_LABEL = "com.docker.compose.project"
COMPOSE_SERVICE_LABEL = "com.docker.compose.service"
DEFAULT_TIMEOUT = 60.0

OnLine = Callable[[str], None]
Version = tuple[int, ...]


@dataclass(frozen=True)
class Image:
    id: str
    labels: Mapping[str, str]
    size_bytes: int
    architecture: str


@dataclass(frozen=True)
class Container:
    id: str
    name: str
    service: str
    """Name in the compose file; empty when compose did not start it."""
    image: str
    state: str
    """created, running, paused, restarting, exited, dead"""
    health: str
    """starting, healthy, unhealthy; empty without a health check"""
    exit_code: int
    oom_killed: bool
    restarts: int
    pid: int
    """Process id on the engine's host; 0 when not running."""
    labels: Mapping[str, str]
    networks: Mapping[str, str]
    """Network name → IPv4 address."""


@dataclass(frozen=True)
class Versions:
    """What answers; None = missing."""

    engine: Version | None
    compose: Version | None
    buildx: Version | None


class Engine:
    """One Docker engine: `unix://…`, `ssh://user@host`, `tcp://…`; None: whatever DOCKER_HOST or the context say."""

    def __init__(self, host: str | None = None) -> None:
        self.host = host

    def __repr__(self) -> str:
        return f"Engine({self.host!r})"

    def argv(self, *args: str) -> list[str]:
        return ["docker", *(("--host", self.host) if self.host else ()), *args]

    # --- the engine itself -------------------------------------------------------------------------------------

    def why_not(self, timeout: float = 10.0) -> str | None:
        """None when the engine answers, else what it or the client said."""
        try:
            answer = self.run("version", "--format", "{{.Server.Version}}", timeout=timeout)
        except ToolError as error:
            if error.returncode == 127:
                return "there is no `docker` command on this machine"
            if error.returncode is None:
                return f"the engine did not answer within {timeout:.0f} s"
            return error.stderr_tail or f"`docker version` ended with exit status {error.returncode}"
        return None if answer.strip() else "the engine gave no version"

    def versions(self) -> Versions:
        return Versions(
            engine=self._version("version", "--format", "{{.Server.Version}}"),
            compose=self._version("compose", "version", "--short"),
            buildx=self._version("buildx", "version"),
        )

    def _version(self, *args: str) -> Version | None:
        try:
            return parse_version(self.run(*args, timeout=10.0))
        except ToolError:
            return None

    def info(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.run("info", "--format", "{{json .}}"))
        return answer

    # --- compose and builds ------------------------------------------------------------------------------------

    def compose(
        self,
        project_dir: Path,
        *args: str,
        on_line: OnLine | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> str:
        """`docker compose ARGS` in the folder that holds compose.yaml (and a user's compose.override.yaml).

        Returns its output; with `on_line`, also hands over each line as it comes.
        """
        lines: list[str] = []
        for line in self.stream("compose", *args, cwd=project_dir, env=env, timeout=timeout):
            lines.append(line)
            if on_line is not None:
                on_line(line)
        return "\n".join(lines)

    def compose_json(self, project_dir: Path, *args: str) -> str:
        """Like `compose`, but standard output alone: for `config`, `ps --format json` and the like."""
        return self.run("compose", *args, cwd=project_dir)

    def build(self, args: Sequence[str], *, timeout: float | None = None) -> Iterator[str]:
        """`docker buildx build ARGS` on the engine's own builder, line by line.

        Its own one, because any other builder sees neither local base images nor stores its result here.
        """
        where = ("--builder", self._builder)
        yield from self.stream("buildx", "build", *where, "--progress=plain", *args, timeout=timeout)

    @cached_property
    def _builder(self) -> str:
        # The engine's own builder is named after the Docker context; --host overrides the default context's address.
        return "default" if self.host else self.run("context", "show").strip()

    # --- images ------------------------------------------------------------------------------------------------

    def image(self, ref: str) -> Image | None:
        try:
            found = json.loads(self.run("image", "inspect", ref))[0]
        except ToolError as error:
            if "no such image" in error.stderr_tail.lower():
                return None
            raise
        labels = (found.get("Config") or {}).get("Labels") or {}
        return Image(found["Id"], labels, found["Size"], found["Architecture"])

    def tag(self, ref: str, new: str) -> None:
        self.run("image", "tag", ref, new)

    def pull(self, ref: str, *, first_line_within: float, timeout: float) -> Iterator[str]:
        """The first line comes when the registry has answered, so a short first wait does not punish a slow line."""
        yield from self.stream("image", "pull", ref, first_line_within=first_line_within, timeout=timeout)

    def push(self, ref: str, *, timeout: float | None = None) -> Iterator[str]:
        yield from self.stream("image", "push", ref, timeout=timeout)

    def import_image(self, tar: IO[bytes], *, changes: Sequence[str] = (), timeout: float = 600.0) -> str:
        """Makes an untagged image of a root file system and returns its id."""
        options = [part for change in changes for part in ("--change", change)]
        return self.run("image", "import", *options, "-", stdin=tar, timeout=timeout).strip()

    def remove_image(self, ref: str) -> None:
        self.run("image", "rm", ref)

    def save(self, refs: Sequence[str], file: Path, *, timeout: float = 3600.0) -> None:
        self.run("image", "save", "--output", str(file), *refs, timeout=timeout)

    def load(self, file: Path, *, timeout: float = 3600.0) -> str:
        return self.run("image", "load", "--input", str(file), timeout=timeout)

    # --- containers and networks -------------------------------------------------------------------------------

    def containers(self, project: str | None = None, *, service: str | None = None) -> list[Container]:
        """All containers, stopped ones too, of a compose project; by name."""
        wanted = {COMPOSE_PROJECT_LABEL: project, COMPOSE_SERVICE_LABEL: service}
        filters = [f"--filter=label={key}={value}" for key, value in wanted.items() if value is not None]
        ids = self.run("ps", "--all", "--quiet", "--no-trunc", *filters).split()
        if not ids:
            return []
        try:
            found = json.loads(self.run("container", "inspect", *ids))
        except ToolError as error:
            if "no such container" not in error.stderr_tail.lower():
                raise
            # One went away between the two calls; ask again.
            return self.containers(project, service=service)
        return sorted((parse_container(one) for one in found), key=lambda one: one.name)

    def volumes(self, project: str) -> list[str]:
        """Names of a compose project's volumes, which outlive its containers."""
        return sorted(self.run("volume", "ls", "--quiet", f"--filter=label={COMPOSE_PROJECT_LABEL}={project}").split())

    def container(self, name: str) -> Container:
        return parse_container(json.loads(self.run("container", "inspect", name))[0])

    def host_pid(self, name: str) -> int:
        """Process id on the engine's host; killing it triggers the restart policy, `docker kill` does not.

        Raises Unhealthy where it is not running, or just about to be again: Docker's pid is 0 then, which to a signal
        means the whole process group of the one who sends it.
        """
        pid = self.container(name).pid
        if not pid:
            raise Unhealthy(f"the container {name} is not running")
        return pid

    def start(self, *names: str) -> None:
        self.run("start", *names)

    def stop(self, *names: str, grace_seconds: int | None = None) -> None:
        grace = () if grace_seconds is None else ("--time", str(grace_seconds))
        self.run("stop", *grace, *names, timeout=None if grace_seconds is None else grace_seconds + DEFAULT_TIMEOUT)

    def restart(self, *names: str) -> None:
        self.run("restart", *names, timeout=None)

    def kill(self, *names: str, signal: str = "KILL") -> None:
        self.run("kill", "--signal", signal, *names)

    def pause(self, *names: str) -> None:
        self.run("pause", *names)

    def unpause(self, *names: str) -> None:
        self.run("unpause", *names)

    def remove(self, *names: str) -> None:
        self.run("rm", "--force", "--volumes", *names)

    def logs(self, name: str, *, lines: int = STDERR_TAIL_LINES) -> str:
        """Standard output and error, interleaved as they came."""
        return "\n".join(self.stream("logs", "--tail", str(lines), name, timeout=DEFAULT_TIMEOUT))

    def exec(self, name: str, *args: str, stdin: str | None = None, timeout: float | None = DEFAULT_TIMEOUT) -> str:
        interactive = () if stdin is None else ("--interactive",)
        return self.run("exec", *interactive, name, *args, stdin=stdin, timeout=timeout)

    def connect(self, network: str, name: str, *, aliases: Sequence[str] = (), address: str | None = None) -> None:
        options = [part for alias in aliases for part in ("--alias", alias)]
        options += ["--ip", address] if address else []
        self.run("network", "connect", *options, network, name)

    def disconnect(self, network: str, name: str) -> None:
        self.run("network", "disconnect", "--force", network, name)

    # --- running the command -----------------------------------------------------------------------------------

    def run(
        self,
        *args: str,
        cwd: Path | None = None,
        stdin: str | IO[bytes] | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
    ) -> str:
        """Standard output of `docker ARGS`; raises ToolError. `timeout=None` waits for ever."""
        return processes.run(self.argv(*args), cwd=cwd, stdin=stdin, timeout=timeout, hint=_hint)

    def stream(
        self,
        *args: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        first_line_within: float | None = None,
    ) -> Iterator[str]:
        """Lines of `docker ARGS`, standard output and error; raises ToolError at the end if it failed."""
        yield from processes.stream(
            self.argv(*args), cwd=cwd, env=env, timeout=timeout, first_line_within=first_line_within, hint=_hint
        )


def _hint(stderr: str) -> str:
    said = stderr.lower()
    if "permission denied" in said and "docker" in said and "sock" in said:
        return "run it as root, or add yourself to the `docker` group and log in again"
    if "cannot connect to the docker daemon" in said:
        return "the engine does not run; `python -m generator doctor --install` starts it"
    if "no space left on device" in said:
        return "free disk space under the engine's data folder (`docker info`, `docker system df`)"
    return ""


def parse_version(text: str) -> Version | None:
    """The first dotted number in it: `github.com/docker/buildx 0.13.1+ds1` → (0, 13, 1)."""
    found = re.search(r"(?<![\w.])v?(\d+(?:\.\d+)+)", text)
    return tuple(int(part) for part in found[1].split(".")) if found else None


def parse_container(found: Mapping[str, Any]) -> Container:
    """From one element of what `docker container inspect` prints."""
    state, labels = found["State"], found["Config"].get("Labels") or {}
    networks = (found.get("NetworkSettings") or {}).get("Networks") or {}
    return Container(
        id=found["Id"],
        name=found["Name"].lstrip("/"),
        service=labels.get(COMPOSE_SERVICE_LABEL, ""),
        image=found["Config"]["Image"],
        state=state["Status"],
        health=(state.get("Health") or {}).get("Status", ""),
        exit_code=state["ExitCode"],
        oom_killed=state["OOMKilled"],
        restarts=found.get("RestartCount", 0),
        pid=state["Pid"],
        labels=labels,
        networks={name: (net or {}).get("IPAddress", "") for name, net in networks.items()},
    )
