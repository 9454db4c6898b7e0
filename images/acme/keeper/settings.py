"""What the environment says, read once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LINEAGE = "gateway"
"""certbot's name of the one certificate."""


@dataclass(frozen=True)
class Settings:
    """`folder` keeps accounts and certificates, `challenges` and `tls` are what nginx sees."""

    node_name: str
    directory: str
    email: str
    name: str
    folder: Path
    challenges: Path
    tls: Path
    scratch: Path

    @property
    def certbot(self) -> Path:
        """One per directory: a certificate of a trial directory must not pass for one of the real."""
        return self.folder / hashlib.sha256(self.directory.encode()).hexdigest()[:16]

    @property
    def lineage(self) -> Path:
        return self.certbot / "live" / LINEAGE

    @property
    def tries(self) -> Path:
        return self.folder / "tries.json"

    @property
    def pulse(self) -> Path:
        """Touched as long as the loop turns."""
        return self.scratch / "keeper-alive"


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Raises `SystemExit` naming what is missing: the container's log then says what to correct."""
    missing = [name for name in ("APPLIANCE_ACME_DIRECTORY", "APPLIANCE_ACME_NAME") if not environment.get(name)]
    if missing:
        raise SystemExit(f"{', '.join(missing)}: not set; compose.yaml of `python -m generator render` sets it")
    return Settings(
        node_name=environment.get("APPLIANCE_NODE_NAME", ""),
        directory=environment["APPLIANCE_ACME_DIRECTORY"],
        email=environment.get("APPLIANCE_ACME_EMAIL", ""),
        name=environment["APPLIANCE_ACME_NAME"],
        folder=Path("/var/lib/acme"),
        challenges=Path("/var/lib/acme-challenge"),
        tls=Path("/etc/nginx/tls"),
        scratch=Path("/tmp"),  # noqa: S108  (the container's own tmpfs)
    )
