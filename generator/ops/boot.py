"""What brings a host's containers back after a reboot where Docker alone does not.

Docker tries each of them once when it starts; one whose NFS or CephFS is not there yet stays down, which after a power
cut is most of them. There systemd goes on trying.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from generator import processes
from generator.errors import ToolError
from generator.ops.cluster import REMOTE_FOLDER, Place, vendors_there
from generator.progress import Progress

UNITS = "/etc/systemd/system"
SYSTEMD_SECONDS = 60.0


def unit_name(place: Place) -> str:
    return _unit_of(place.project, place.host.name)


def _unit_of(project: str, host: str) -> str:
    return f"animatediff-ha-{project}-{host}.service"


def farewell(project: str, host: str) -> str:
    """What a person runs on a machine that is no longer a host: else the unit brings its containers back."""
    unit = shlex.quote(_unit_of(project, host))
    commands = (
        f"docker compose --project-name {shlex.quote(project)} down",
        f"systemctl disable {unit}",
        f"rm -f {UNITS}/{unit}",
        f"rm -rf {shlex.quote(f'{REMOTE_FOLDER}/{project}/{host}')}",
    )
    return "; ".join(commands)


def unit_text(place: Place, profiles: Sequence[str]) -> str:
    """The unit that starts what is there, and changes none of it: a release is rolled out by nobody's reboot."""
    folder = place.remote_folder if place.ssh else str(place.folder)
    chosen = "".join(f" --profile {name}" for name in profiles)
    return f"""\
# Written by `python -m generator up`, removed by `down`.
[Unit]
Description={place.host.name} of the AnimateDiff cluster {place.project}: again until its storage is there
Requires=docker.service
After=docker.service network-online.target remote-fs.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
Type=oneshot
RemainAfterExit=yes
WorkingDirectory={folder.replace("%", "%%")}
ExecStart=/usr/bin/env docker compose{chosen} up --detach --no-recreate --pull never
Restart=on-failure
RestartSec=10
TimeoutStartSec=900

[Install]
WantedBy=multi-user.target
"""


def settle(targets: Sequence[Place], progress: Progress) -> None:
    """Enable the unit where a host mounts a shared storage and systemd runs; away with it where none is mounted any
    more. What fails is only a warning: the host works, until it reboots."""
    for place in targets:
        if not place.mounts_shared_storage:
            remove([place], progress)
            continue
        name, path = _words(place)
        script = (
            f"test -d /run/systemd/system || exit 0; umask 022; cat > {path}.new && mv {path}.new {path} && "
            f"systemctl daemon-reload && systemctl enable --quiet {name}"
        )
        _run(place, script, progress, unit_text(place, vendors_there(place)))


def remove(targets: Sequence[Place], progress: Progress) -> None:
    for place in targets:
        name, path = _words(place)
        script = f"test -e {path} || exit 0; systemctl disable --quiet {name}; rm {path} && systemctl daemon-reload"
        _run(place, script, progress, "")


def _words(place: Place) -> tuple[str, str]:
    """The unit's name and its file, for a shell."""
    name = unit_name(place)
    return shlex.quote(name), shlex.quote(f"{UNITS}/{name}")


def _run(place: Place, script: str, progress: Progress, stdin: str) -> None:
    try:
        processes.run(place.shell(script), timeout=SYSTEMD_SECONDS, stdin=stdin)
    except ToolError as error:
        progress.warn(f"{place.host.name} may not come back from a reboot by itself: {error}")
