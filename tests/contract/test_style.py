"""The standards that tools can hold: ruff, mypy --strict and the import contracts. (hadolint: test_dockerfiles.py.)"""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["lint-imports", "--no-logo"]],
    ids=" ".join,
)
def test_clean(command: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/images/services:{ROOT}/images/webui:{ROOT}/images/sdapi"}
    argv = [str(SCRIPTS / command[0]), *command[1:]]
    result = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
