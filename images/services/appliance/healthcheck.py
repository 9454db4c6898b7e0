"""Liveness, for Docker: is this process turning? Never readiness: a restart heals a stuck process, not a lost Redis."""

from __future__ import annotations

import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping

from appliance.lifecycle import heartbeat_age_seconds

LIMIT_SECONDS = 2.0
HEARTBEAT_LIMIT_SECONDS = 10.0
PORTS = {"api": 8000, "exporter": 9400, "relay": 9095}
"""The services that serve HTTP, and where unless they are told otherwise."""


def check_heartbeat(service: str) -> str | None:
    """None when fine, else what is wrong."""
    age = heartbeat_age_seconds(service)
    if age is None:
        return f"{service} has written no heartbeat yet"
    if age > HEARTBEAT_LIMIT_SECONDS:
        return f"{service}'s event loop has not turned for {age:.0f} s"
    return None


def check_http(url: str) -> str | None:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        return f"{url!r} is not an http address"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    begin = time.monotonic()
    try:
        with opener.open(url, timeout=LIMIT_SECONDS) as response:
            status = response.status
    except urllib.error.HTTPError as error:
        return f"{url} answers {error.code}"
    except (TimeoutError, urllib.error.URLError, OSError, ValueError) as error:
        return f"{url} does not answer: {error}"
    if time.monotonic() - begin > LIMIT_SECONDS:
        return f"{url} took longer than {LIMIT_SECONDS:g} s"
    return None if status < 300 else f"{url} answers {status}"


def own_url(service: str, environment: Mapping[str, str]) -> str:
    port = environment.get("APPLIANCE_LISTEN", f":{PORTS[service]}").rpartition(":")[2]
    return f"http://127.0.0.1:{port}/healthz"
