"""What earlier copies left on another machine: an override still in force, a key that nobody mounts."""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
from pathlib import Path

OURS = "./config ./secrets ./compose*.yaml ./compose*.yml"
"""All that compose and its services read of the folder. What else is there may be a container's data."""


def removal(folder: Path, there: str) -> tuple[str, str]:
    """The shell script, and what it reads, that removes the files of OURS in `there` which `folder` does not have.

    Folders stay, for containers have them mounted. Nothing is removed before the whole list has arrived.
    """
    files = sorted(os.fsencode(path.relative_to(folder)) for path in folder.rglob("*") if not _is_folder(path))
    listed = base64.b64encode(b"".join(b"./" + name + b"\0" for name in files)).decode()
    digest = hashlib.sha256(listed.encode()).hexdigest()
    script = (
        f"cd {shlex.quote(there)} && umask 077 && export LC_ALL=C && cat > .files && "
        f"echo {digest} .files | sha256sum --check --status && base64 --decode < .files > .kept && "
        f"{{ find {OURS} '(' -type f -o -type l ')' -print0 2> .faults || true; }} | "
        "sort -z | comm -z -23 - .kept | xargs -0 -r rm -f -- && rm -f .files .kept .faults"
    )
    return script, listed


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
