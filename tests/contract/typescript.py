"""Types that others publish on npm as judges of what we write in JSON: `tsc`, where npm can get it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

TYPESCRIPT = "typescript@5.8.3"
SETTINGS = {
    "compilerOptions": {
        **{"strict": True, "noEmit": True, "skipLibCheck": True, "target": "es2022", "module": "esnext"},
        **{"moduleResolution": "node10", "types": []},
    },
    "files": ["check.ts"],
}


def installed(folder: Path, packages: Sequence[str], what: str) -> Path:
    """The folder with these packages; skips, saying what is not checked, where there is no npm or it gets nothing."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"NOT CHECKED: {what}, for there is no npm on this machine")
    (folder / "package.json").write_text("{}")
    words = ["install", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1", TYPESCRIPT, *packages]
    done = subprocess.run([npm, *words], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        pytest.skip(f"NOT CHECKED: {what}, for npm gets nothing: {done.stderr[-300:]}")
    (folder / "tsconfig.json").write_text(json.dumps(SETTINGS))
    return folder


def compiled(project: Path, lines: Sequence[str]) -> str:
    """What the compiler says; nothing when it is content."""
    (project / "check.ts").write_text("\n".join(lines))
    argv = [str(project / "node_modules/.bin/tsc"), "--pretty", "false", "-p", "."]
    done = subprocess.run(argv, cwd=project, capture_output=True, text=True, timeout=300, check=False, env=os.environ)
    return done.stdout + done.stderr
