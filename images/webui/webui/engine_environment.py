"""The environment of the engine's process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import webui
from webui.settings import EngineSettings

# On the CPU a step frees what the next one takes anew. By default glibc hands it back to the kernel in between, which
# then clears it page by page again: 45,000 page faults for a clip of 64 px, 1.6 million for one of 256 px, a tenth to
# a sixth of its time. So it is kept, up to 1 GiB of it, and in huge pages; blocks above 32 MiB are handed back as ever.
# All threads share it: what each kept for itself would grow for a while.
MALLOC = {"hugetlb": 1, "trim_threshold": 1 << 30, "mmap_threshold": 32 << 20, "arena_max": 1}


def engine_environment(settings: EngineSettings, environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` with what the engine's libraries read from theirs when they start; no network, no word to anybody."""
    package_root, threads = str(Path(webui.__file__).parents[1]), str(settings.threads)
    tunables = ":".join(f"glibc.malloc.{name}={value}" for name, value in MALLOC.items())
    return {
        **({"GLIBC_TUNABLES": tunables} if settings.device == "cpu" else {}),  # an operator's own goes before
        **environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (package_root, environ.get("PYTHONPATH")))),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
    }
