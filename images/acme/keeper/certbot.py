"""certbot's command line, and running it: bounded, and ended with the container."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from keeper.settings import LINEAGE, Settings

LONGEST_SECONDS = 600.0
END_SECONDS = 8.0
LAST_CHARACTERS = 1500


@dataclass(frozen=True)
class Result:
    done: bool
    output: str
    """The last of what it said."""


def arguments(settings: Settings, *, force: bool = False) -> list[str]:
    """certbot itself knows when one is due: from the directory's hint, else with a third of its life left."""
    account = ["--email", settings.email] if settings.email else ["--register-unsafely-without-email"]
    return [
        "certbot", "certonly", "--non-interactive", "--agree-tos", *account,
        "--server", settings.directory, "--cert-name", LINEAGE, "--domain", settings.name,
        "--webroot", "--webroot-path", str(settings.challenges), "--preferred-challenges", "http",
        "--key-type", "ecdsa", "--renew-with-new-domains",
        "--force-renewal" if force else "--keep-until-expiring",
        "--config-dir", str(settings.certbot), "--work-dir", str(settings.folder / "work"),
        "--logs-dir", str(settings.scratch / "certbot"), "--max-log-backups", "0",
    ]  # fmt: skip


def run(settings: Settings, argv: list[str], go_on: Callable[[], bool]) -> Result:
    """`go_on` is asked all the time; once it says no, certbot is ended."""
    shutil.rmtree(settings.scratch / "certbot", ignore_errors=True)
    with (settings.scratch / "certbot.out").open("w+b") as output:
        end = time.monotonic() + LONGEST_SECONDS
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT) as process:
            while process.poll() is None and go_on() and time.monotonic() < end:
                time.sleep(0.2)
            _end(process)
        output.seek(0)
        said = output.read().decode(errors="replace").strip()[-LAST_CHARACTERS:]
    return Result(process.returncode == 0, said or f"certbot ended with {process.returncode}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """It takes its answer to a challenge away when it is asked to end."""
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
