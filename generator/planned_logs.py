"""The logs' part of what `plan` makes: who ships lines, and who keeps them."""

from __future__ import annotations

from dataclasses import dataclass

from generator.limits import Limits

READER = "operator"
"""Who may search, by the password `logs_password`."""
SETUP = "appliance_setup"
"""Who may prepare Elasticsearch, by the password `logs_setup_password`. What both may do: `config/elasticsearch`."""


@dataclass(frozen=True)
class ShipperPlan:
    """Filebeat, one on every host."""

    host: str
    project: str
    """The compose project whose containers' lines are shipped."""
    image: str
    docker_folder: str
    """Where Docker keeps the containers' logs, on the host."""
    logstashes: tuple[str, ...]
    """`address:port`; whichever answers gets the lines."""


@dataclass(frozen=True)
class LogStorePlan:
    """Logstash, and an Elasticsearch of its own: two hosts with the role are two stores, of which one may be lost."""

    host: str
    logstash_image: str
    elasticsearch_image: str
    retention_days: int
    limits: Limits
    """Of Elasticsearch."""

    @property
    def heap_mib(self) -> int:
        """The other half is for what the system keeps of its files, and for what Java needs beside its heap."""
        return self.limits.memory_mib // 2
