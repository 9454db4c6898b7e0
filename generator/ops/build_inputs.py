"""What an image is made from, as one hash: equal hash, same image, no build."""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath


def parse_dockerignore(text: str) -> list[tuple[re.Pattern[str], bool]]:
    """Rules in order, as (pattern, is an exception): https://docs.docker.com/build/concepts/context/#dockerignore-files"""
    rules = []
    for line in text.splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        kept = rule.startswith("!")
        rules.append((_pattern(rule.lstrip("!").strip().strip("/")), kept))
    return rules


def _pattern(rule: str) -> re.Pattern[str]:
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    text = "".join(parts.get(token) or re.escape(token) for token in re.findall(r"\*\*/|\*\*|\*|\?|[^*?]+", rule))
    # A rule for a folder is one for all in it.
    return re.compile(f"{text}(?:/.*)?")


def is_ignored(path: PurePosixPath, rules: Sequence[tuple[re.Pattern[str], bool]]) -> bool:
    """The last rule that matches decides."""
    verdicts = [not kept for pattern, kept in rules if pattern.fullmatch(str(path))]
    return bool(verdicts) and verdicts[-1]


def context_files(context: Path) -> list[Path]:
    """What a build of this folder can see, in a fixed order."""
    listing = context / ".dockerignore"
    rules = parse_dockerignore(listing.read_text(encoding="utf-8")) if listing.is_file() else []
    files = (path for path in context.rglob("*") if path.is_symlink() or path.is_file())
    return sorted(path for path in files if not is_ignored(PurePosixPath(path.relative_to(context)), rules))


def inputs_hash(context: Path, dockerfile: Path, facts: Iterable[str]) -> str:
    """SHA-256 over the context's files (names, kinds, contents), the Dockerfile and further facts, in their order."""
    digest = hashlib.sha256()
    for fact in facts:
        _add(digest, fact.encode())
    _add(digest, dockerfile.read_bytes())
    _add_folder(digest, context)
    return digest.hexdigest()


def folder_hash(context: Path) -> str:
    """SHA-256 over what a build of the folder can see."""
    digest = hashlib.sha256()
    _add_folder(digest, context)
    return digest.hexdigest()


def _add_folder(digest: hashlib._Hash, context: Path) -> None:
    for path in context_files(context):
        _add(digest, str(path.relative_to(context)).encode())
        _add(digest, _kind(path))
        _add(digest, str(path.readlink()).encode() if path.is_symlink() else path.read_bytes())


def _kind(path: Path) -> bytes:
    """As git knows it: who may read a checkout differs between machines, and no image depends on it."""
    mode = path.lstat().st_mode
    return b"link" if stat.S_ISLNK(mode) else b"program" if mode & stat.S_IXUSR else b"file"


def _add(digest: hashlib._Hash, data: bytes) -> None:
    # With its length, so that no two sequences of parts read the same.
    digest.update(f"{len(data)}:".encode())
    digest.update(data)
