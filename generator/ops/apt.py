"""Reads a machine's apt sources, both formats, to learn its mirrors; and writes the deb822 one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

APT_DIR = Path("/etc/apt")
DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True)
class Source:
    """One `deb` entry. `signed_by` is a path, a fingerprint or a whole key, exactly as found; empty if none."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""

    def deb822(self) -> str:
        lines = [
            "Types: deb",
            f"URIs: {self.uri}",
            f"Suites: {' '.join(self.suites)}",
            f"Components: {' '.join(self.components)}",
        ]
        if self.signed_by:
            lines.append(f"Signed-By: {self.signed_by}")
        return "\n".join(lines) + "\n"


def read_sources(apt_dir: Path = APT_DIR, *, without: Path | None = None) -> list[Source]:
    """All enabled binary sources, in apt's own order; those of the file `without` are left out."""
    found: list[Source] = []
    one_file = apt_dir / "sources.list"
    if one_file.is_file():
        found += parse_one_line(one_file.read_text(encoding="utf-8", errors="replace"))
    folder = apt_dir / "sources.list.d"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        parse = {".list": parse_one_line, ".sources": parse_deb822}.get(path.suffix)
        if parse is not None and path != without:
            found += parse(path.read_text(encoding="utf-8", errors="replace"))
    return found


def parse_one_line(text: str) -> list[Source]:
    """`deb [arch=amd64 signed-by=/key.gpg] http://mirror/debian bookworm main`; see sources.list(5)."""
    found = []
    for line in text.splitlines():
        words = line.split("#", 1)[0].replace("[", " [ ").replace("]", " ] ").split()
        if not words or words[0] != "deb":
            continue
        options: list[str] = []
        rest = words[1:]
        if rest and rest[0] == "[" and "]" in rest:
            end = rest.index("]")
            options, rest = rest[1:end], rest[end + 1 :]
        if len(rest) < 2 or rest[0].startswith("cdrom:"):
            continue
        signed_by = next((option.split("=", 1)[1] for option in options if option.startswith("signed-by=")), "")
        found.append(Source(rest[0], (rest[1],), tuple(rest[2:]), signed_by))
    return found


def parse_deb822(text: str) -> list[Source]:
    """Stanzas of `Types: URIs: Suites: Components: Signed-By: Enabled:`; see sources.list(5)."""
    found = []
    for stanza in _stanzas(text):
        if "deb" not in stanza.get("types", "").split() or stanza.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        uris, suites, components = (stanza.get(key, "").split() for key in ("uris", "suites", "components"))
        signed_by = stanza.get("signed-by", "")
        found += [Source(uri, tuple(suites), tuple(components), signed_by) for uri in uris]
    return found


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    fields: dict[str, str] = {}
    last = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                yield fields
            fields, last = {}, ""
        elif line[0] in " \t" and last:
            fields[last] += "\n" + line
        elif ":" in line:
            last = line.split(":", 1)[0].strip().lower()
            fields[last] = line.split(":", 1)[1].strip()


def main_source(sources: Sequence[Source], suite: str) -> Source | None:
    """The first that carries the suite's main component."""
    return next((one for one in sources if suite in one.suites and "main" in one.components), None)


def resolve_uri(uri: str) -> str:
    """A plain URL. Debian's cloud images say `mirror+file:/etc/apt/mirrors/debian.list`, which only apt understands."""
    if not uri.startswith("mirror+file:"):
        return uri.rstrip("/")
    listing = Path("/" + uri.removeprefix("mirror+file:").lstrip("/"))
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    return next((line.split()[0].rstrip("/") for line in lines if line.strip() and not line.startswith("#")), "")


def install_argv(packages: Sequence[str], *, lock_seconds: int = 300) -> list[list[str]]:
    """Two commands. They wait for another apt instead of failing on its lock, and never remove anything."""
    wait = ["-o", f"DPkg::Lock::Timeout={lock_seconds}"]
    return [
        ["apt-get", "update", *wait],
        ["apt-get", "install", "--yes", "--no-remove", "--no-install-recommends", *wait, *packages],
    ]


def installed(packages: Sequence[str]) -> frozenset[str]:
    argv = ["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package}\n", *packages]
    try:
        # It fails when one of them is unknown, and prints the others all the same.
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return frozenset()
    words = (line.split() for line in done.stdout.splitlines())
    return frozenset(name for status, name in words if status == "installed")
