"""What needs two values of the section `logs` to judge; `checks` has the rules among its own."""

from __future__ import annotations

from collections.abc import Iterator

from generator.errors import Problem
from generator.load import Loaded
from generator.model import LogDriver

OF_ELASTIC = ("retention_days", "memory_gib", "docker_folder", "images", "version")


def unused_log_settings(loaded: Loaded) -> Iterator[Problem]:
    if loaded.cluster.logs.driver is LogDriver.ELASTIC:
        return
    for key in OF_ELASTIC:
        if ("logs", key) in loaded.marks:
            yield loaded.problem(("logs", key), "is not used with driver none; remove it, or write driver: elastic")


RULES = (unused_log_settings,)
