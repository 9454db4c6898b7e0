"""Lifecycle, index template and Logstash's key, as often as one likes: what is as it should be is left alone.

The key is made by Elasticsearch and told once. It is handed over within the piece of pipeline that uses it, which
Logstash notices by itself: a key made anew (the store was lost, or its rights have changed) needs no new start.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from string import Template
from typing import Any

from elastic_transport import TlsError
from elasticsearch import ApiError, AuthenticationException, Elasticsearch, TransportError

from appliance.errors import ApplianceError
from appliance.log_store.settings import USER, Bodies, SetupSettings
from appliance.logs import configure_logging, fields

NAME = "animatediff"
"""Of the lifecycle and of the template."""
KEY_PREFIX = "logstash-"
REQUEST_SECONDS = 20.0
_KEY = re.compile(r'api_key => "(?P<id>[A-Za-z0-9_-]+):(?P<secret>[A-Za-z0-9_-]+)"')

log = logging.getLogger(__name__)


class LogStoreError(ApplianceError):
    """Elasticsearch does not answer, or refuses what it is asked for."""


def run(settings: SetupSettings) -> int:
    configure_logging(settings.common)
    with connected(settings) as client:
        prepare(client, settings)
    return 0


@contextmanager
def connected(settings: SetupSettings) -> Iterator[Elasticsearch]:
    client = Elasticsearch(
        settings.url,
        basic_auth=(USER, settings.password.reveal()),
        ca_certs=str(settings.ca),
        request_timeout=REQUEST_SECONDS,
        max_retries=3,
        retry_on_timeout=True,  # everything here may be done twice
    )
    with client:
        yield client


def prepare(client: Elasticsearch, settings: SetupSettings, *, pause: float = 1.0) -> None:
    """Raises `LogStoreError`. Again and again while Elasticsearch cannot do it yet, as right after its start; what was
    done before a failure the next try does again, or leaves as it is."""
    end = time.monotonic() + settings.ready_seconds
    while True:
        try:
            client.cluster.health(wait_for_status="yellow", timeout="10s")
            return set_up(client, settings.bodies, settings.output)
        except AuthenticationException as error:
            hint = "it does not know the password: `python -m generator up --recreate` after one was rotated"
            raise LogStoreError(f"Elasticsearch refuses {USER}; {hint}") from error
        except (ApiError, TransportError) as error:
            if not _may_pass(error):
                raise LogStoreError(f"Elasticsearch refuses what it is asked for: {error}") from error
            if time.monotonic() > end:
                raise LogStoreError(
                    f"Elasticsearch is not ready after {settings.ready_seconds:g} s: {error}"
                ) from error
        time.sleep(pause)


def _may_pass(error: ApiError | TransportError) -> bool:
    if isinstance(error, ApiError):
        return error.status_code == 429 or error.status_code >= 500
    return not isinstance(error, TlsError)


def set_up(client: Elasticsearch, bodies: Bodies, output: Path) -> None:
    client.ilm.put_lifecycle(name=NAME, **bodies.lifecycle)
    client.indices.put_index_template(name=NAME, **bodies.template)
    key = _key(client, bodies.writer, output)
    _write(output, Template(bodies.output).substitute(api_key=key))
    log.info("Elasticsearch is ready for the lines of the cluster", extra=fields(event="log_store_ready"))


def _key(client: Elasticsearch, roles: Mapping[str, Any], output: Path) -> str:
    """`id:secret`: the one that Logstash has if it is good, else another. Those before it end with the next run, when
    Logstash has long taken up the new one."""
    digest = hashlib.sha256(json.dumps(roles, sort_keys=True).encode()).hexdigest()
    name = f"{KEY_PREFIX}{digest[:12]}"
    held = _KEY.search(output.read_text(encoding="utf-8")) if output.exists() else None
    keys = client.security.get_api_key(owner=True, active_only=True)["api_keys"]
    ours = {key["id"]: key["name"] for key in keys if key["name"].startswith(KEY_PREFIX) and not key["invalidated"]}
    if held and ours.get(held["id"]) == name:
        if old := [identity for identity in ours if identity != held["id"]]:
            client.security.invalidate_api_key(owner=True, ids=old)
        return f"{held['id']}:{held['secret']}"
    made = client.security.create_api_key(name=name, role_descriptors=roles)
    log.info("Logstash gets a new key", extra=fields(event="log_key_made"))
    return f"{made['id']}:{made['api_key']}"


def _write(path: Path, text: str) -> None:
    """Whole or not at all, readable by the containers' user alone; nothing where nothing has changed."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with suppress(FileNotFoundError):
            temporary.unlink()
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise LogStoreError(f"{path}: {error.strerror}; it has to be a volume that uid 10001 may write") from error
