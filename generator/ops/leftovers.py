"""What earlier copies left on another machine: an override still in force, a key that nobody mounts."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shlex
from pathlib import Path

OURS = frozenset({"config", "secrets"})


def removal(folder: Path, there: str) -> tuple[str, str]:
    """The shell script, and what it reads, that removes the files in `there` which `folder` does not have.

    Folders stay, for containers have them mounted; so does a folder of the top that is unknown here: an override has
    had a container make it, and it holds that one's data. Nothing is removed before the whole list has arrived.
    """
    files = sorted(os.fsencode(path.relative_to(folder)) for path in folder.rglob("*") if not _is_folder(path))
    listed = base64.b64encode(b"".join(b"./" + name + b"\0" for name in files)).decode()
    known = OURS | {path.name for path in folder.iterdir() if _is_folder(path)}
    strange = " ".join(f"! -path {shlex.quote('./' + _literal(name))}" for name in sorted(known))
    digest = hashlib.sha256(listed.encode()).hexdigest()
    script = (
        f"cd {shlex.quote(there)} && umask 077 && export LC_ALL=C && cat > .files && "
        f"echo {digest} .files | sha256sum --check --status && base64 --decode < .files > .kept && "
        f"find . -type d -path './*' ! -path './*/*' {strange} -prune -o '(' -type f -o -type l ')' -print0 | "
        "sort -z | comm -z -23 - .kept | xargs -0 -r rm -f --"
    )
    return script, listed


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _literal(name: str) -> str:
    """For `find -path`."""
    return re.sub(r"([\\*?\[])", r"\\\1", name)
