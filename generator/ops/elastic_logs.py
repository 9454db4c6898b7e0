"""The lines that an Elasticsearch of the cluster keeps, as https://www.elastic.co/docs/api/doc/elasticsearch has it."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from generator import ports, processes
from generator.errors import ToolError, Unhealthy
from generator.ops.cluster import Place
from generator.ops.log_line import MOST_LINES, LogLine, described
from generator.planned_logs import READER

INDEX = "logs-animatediff-*"
SERVER_NAME = "elasticsearch"
"""In the certificate of every Elasticsearch of the cluster, whatever address it is reached at."""
PAGE = 1000
PAGE_BYTES = 64 << 20
"""A thousand lines of 64 KB each; more is no answer of ours."""
SECONDS = 60.0
"""For all pages together."""
CONNECT_SECONDS = 5.0
INSPECT_SECONDS = 30.0
READ = (
    *("node_name", "container", "service", "message", "log.level", "event", "reason", "result", "detail"),
    *("source.file", "source.offset"),
)


def search_body(job_id: str, start: float, end: float, after: list[Any] | None = None) -> dict[str, Any]:
    """One page of the lines that name the job; Unix times in seconds. `after`: the sort values of the last line so far.

    A line has its place in time and, after that, in a file: one that was sent twice has the same, and comes once.
    """
    window = {"gte": round(start * 1000), "lte": round(end * 1000), "format": "epoch_millis"}
    named = [{"term": {"job_id": job_id}}, *({"match_phrase": {field: job_id}} for field in ("message", "detail"))]
    body: dict[str, Any] = {
        "size": PAGE,
        "timeout": "20s",
        "track_total_hits": False,
        "query": {
            "bool": {
                "filter": [
                    {"range": {"@timestamp": window}},
                    {"bool": {"should": named, "minimum_should_match": 1}},
                ]
            }
        },
        "sort": [{"@timestamp": "asc"}, {"source.file": "asc"}, {"source.offset": "asc"}],
        "_source": list(READ),
    }
    return body if after is None else {**body, "search_after": after}


@dataclass(frozen=True)
class Access:
    """Who asks, and whom to believe."""

    password: str
    authority: Path


class ElasticLogs:
    """All hosts' lines, as long as `logs.retention_days`. Raises `Unhealthy` for whatever is no whole answer."""

    def __init__(self, place: Place, access: Access, url: str = "") -> None:
        """`url`: where it is, if that is not to be found out."""
        self._place, self._access, self._url = place, access, url

    @property
    def name(self) -> str:
        return f"Elasticsearch on {self._place.host.name}"

    def lines(self, job_id: str, start: float, end: float) -> Iterator[LogLine]:
        deadline = time.monotonic() + SECONDS
        with self._client() as client:
            after: list[Any] | None = None
            found = 0
            while True:
                hits = _page(client, search_body(job_id, start, end, after), deadline)
                yield from (_line(hit) for hit in hits)
                found += len(hits)
                if len(hits) < PAGE:
                    return
                if found >= MOST_LINES:
                    raise Unhealthy(f"more than {MOST_LINES} lines name the job; the rest was not read")
                after = hits[-1]["sort"]

    def _client(self) -> httpx.Client:
        try:
            trusted = ssl.create_default_context(cafile=str(self._access.authority))
        except OSError as error:
            raise Unhealthy(f"{self._access.authority}: {error.strerror or error}") from None
        return httpx.Client(
            base_url=self._url or f"https://{address_of(self._place)}:{ports.ELASTICSEARCH}",
            verify=trusted,
            auth=(READER, self._access.password),
            trust_env=False,  # it is in the cluster's own network
        )


def address_of(place: Place) -> str:
    """A single host does not publish it: from that very host, its container is reached."""
    if place.host.publish:
        return place.host.publish
    if place.ssh:
        raise Unhealthy(f"it is not published; run this on {place.host.name}")
    try:
        container = processes.run(place.compose("ps", "--quiet", "elasticsearch"), timeout=INSPECT_SECONDS).strip()
        if not container:
            raise Unhealthy("it does not run")
        network = "{{range .NetworkSettings.Networks}}{{println .IPAddress}}{{end}}"
        found = processes.run(place.docker("inspect", "--format", network, container), timeout=INSPECT_SECONDS).split()
    except ToolError as error:
        raise Unhealthy(str(error)) from error
    if not found:
        raise Unhealthy("it has no address: it does not run")
    return found[0]


def _page(client: httpx.Client, body: Mapping[str, Any], deadline: float) -> list[dict[str, Any]]:
    try:
        answer = json.loads(_asked(client, body, deadline))
        hits = list(answer["hits"]["hits"])
        whole = not answer["timed_out"] and not answer["_shards"]["failed"]
    except httpx.HTTPError as error:
        raise Unhealthy(f"it does not answer: {error or type(error).__name__}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Unhealthy(f"its answer is not understood: {error!r}") from None
    if not whole:
        raise Unhealthy("it has answered for a part of the lines only")
    return hits


def _asked(client: httpx.Client, body: Mapping[str, Any], deadline: float) -> bytes:
    content = bytearray()
    limits = httpx.Timeout(max(0.1, deadline - time.monotonic()), connect=CONNECT_SECONDS)
    called = {"sni_hostname": SERVER_NAME}
    with client.stream("POST", f"/{INDEX}/_search", json=body, timeout=limits, extensions=called) as answer:
        for chunk in answer.iter_bytes():
            content += chunk
            if len(content) > PAGE_BYTES or time.monotonic() > deadline:
                raise Unhealthy(f"it was still answering after {SECONDS:g} s or {PAGE_BYTES >> 20} MiB")
        if answer.status_code == 401:
            raise Unhealthy("it does not know the password; was it rotated? `up` lays it out")
        if answer.status_code != 200:
            raise Unhealthy(f"it answers {answer.status_code}: {content[:300].decode(errors='replace')}")
    return bytes(content)


def _line(hit: Mapping[str, Any]) -> LogLine:
    try:
        source = hit["_source"]
        message, level = described(source)
        host, service = source.get("node_name"), source.get("container") or source.get("service")
        return LogLine(hit["sort"][0] / 1000, str(host), str(service), message or "", level)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise Unhealthy(f"a line of its answer is not understood: {error!r}") from None
