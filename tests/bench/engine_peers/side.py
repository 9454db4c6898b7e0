"""One of the programs beside this file, as a running process that is asked one order after the other."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from webui.engine_environment import engine_environment
from webui.settings import EngineSettings


class Side:
    """One of the two programs, running."""

    def __init__(self, name: str, models: Path, arguments: argparse.Namespace, **options: Any) -> None:
        self.name = name
        options = {"checkpoint": arguments.checkpoint, "motion_module": arguments.motion_module} | options
        threads = str(arguments.threads)
        command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), str(models), arguments.device, threads]
        environ = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
        if name == "ours":  # what the server starts it with
            environ = engine_environment(EngineSettings(device=arguments.device, threads=arguments.threads), os.environ)
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [*command, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environ | {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"},
        )
        self.loaded = self._answer()

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        self._process.wait()
        self._log.seek(0)
        raise SystemExit(f"{self.name}.py ended with {self._process.returncode}:\n{self._log.read()[-2000:]}")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()
