"""A small client of the appliance's public HTTP interface: what `demo` and `status` need of it."""

from __future__ import annotations

import hashlib
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from generator.errors import Unhealthy, UserError

CHUNK_BYTES = 1 << 20
NO_ANSWER = (502, 503, 504)
DEAD_PAGE = 200
LONGEST_WAIT_SECONDS = 86400.0
"""From being sent to being given up."""


class Client:
    """Speaks to one gateway. Connection errors and 5xx answers are for the caller to retry: it knows its deadline."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        authority: Path | None = None,
        server_name: str = "",
        timeout_seconds: float = 5.0,
    ) -> None:
        """`authority` is the cluster's own CA certificate; without it the system's authorities are asked.

        `server_name` is what the certificate has to be for, where that is not the address in `url`.
        """
        self.url = url
        named = {"sni_hostname": server_name} if server_name else {}
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=timeout_seconds,
            verify=ssl.create_default_context(cafile=authority) if authority else True,
            trust_env=False,  # a proxy for the internet must not see the cluster's key
            event_hooks={"request": [lambda request: request.extensions.update(named)]},
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def ready(self) -> bool:
        try:
            return self._http.get("/readyz").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def wait_ready(self, deadline_seconds: float, *, describe: Callable[[], str]) -> None:
        """Until `/readyz` answers 200; `Unhealthy` with `describe()` when it does not in time."""
        end = time.monotonic() + deadline_seconds
        while not self.ready():
            if time.monotonic() > end:
                raise Unhealthy(f"{self.url}/readyz did not answer 200 within {deadline_seconds:.0f} s\n{describe()}")
            time.sleep(0.25)

    def submit(self, request: Mapping[str, Any], *, idempotency_key: str) -> str:
        """Submit and return the job's id. Sent again where no answer came, or a gateway's: the key makes that safe."""
        for attempt in range(10):
            try:
                answer = self._http.post("/api/v1/jobs", json=request, headers={"Idempotency-Key": idempotency_key})
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code not in NO_ANSWER:
                return str(_checked(answer)["id"])
            time.sleep(0.2 * (attempt + 1))
        raise Unhealthy(f"{self.url} took no job in ten tries; `python -m generator status` shows what is wrong")

    def job(self, job_id: str) -> dict[str, Any]:
        return _checked(self._http.get(f"/api/v1/jobs/{job_id}"))

    def dead_jobs(self, since: float) -> list[dict[str, Any]]:
        """Those that were given up at Unix time `since` or later, of all users; for operators."""
        found: list[dict[str, Any]] = []
        query: dict[str, Any] = {"state": "dead", "limit": DEAD_PAGE}
        while True:
            page = _checked(self._http.get("/api/v1/jobs", params=query))
            found += [job for job in page["jobs"] if (job["finished_at"] or 0) >= since]
            oldest = min((job["created_at"] for job in page["jobs"]), default=since)
            if page["cursor"] is None or oldest < since - LONGEST_WAIT_SECONDS:
                return found
            query["cursor"] = page["cursor"]

    def retry(self, job_id: str) -> None:
        """A job that was given up runs again. One that does not wait for that, or is gone, is left as it is."""
        answer = self._http.post(f"/api/v1/jobs/{job_id}/retry")
        if answer.status_code not in (httpx.codes.NOT_FOUND, httpx.codes.CONFLICT):
            _checked(answer)

    def trace(self, job_id: str) -> dict[str, Any]:
        return _checked(self._http.get(f"/api/v1/jobs/{job_id}/trace"))

    def errors(self, days: int) -> dict[str, Any]:
        return _checked(self._http.get("/api/v1/errors", params={"days": days}))

    def cluster(self) -> dict[str, Any]:
        return _checked(self._http.get("/api/v1/cluster"))

    def nodes(self) -> list[dict[str, Any]]:
        """Every node and api, with the orders about it and how each gateway sees it; for operators."""
        return list(_checked(self._http.get("/api/v1/nodes"))["nodes"])

    def order(self, worker: str, order: Mapping[str, Any]) -> dict[str, Any]:
        """Raises `UserError` where the cluster refuses it: the last node that works is not taken out."""
        answer = self._http.put(f"/api/v1/nodes/{worker}/order", json=order)
        if answer.is_client_error:
            raise UserError(f"{worker}: {_said(answer)}")
        return _checked(answer)

    def drop_order(self, worker: str) -> None:
        answer = self._http.delete(f"/api/v1/nodes/{worker}/order")
        if answer.status_code != httpx.codes.NO_CONTENT:
            _checked(answer)

    def download(self, job_id: str, target: Path) -> str:
        """Write the job's video to `target` (whole or not at all) and return its sha256 in hex."""
        temporary = target.with_name(target.name + ".part")
        try:
            sha256 = self._download(job_id, temporary)
        except httpx.TransportError as error:
            raise Unhealthy(f"{self.url}: the video of job {job_id} did not arrive: {error}") from error
        temporary.replace(target)
        return sha256

    def _download(self, job_id: str, temporary: Path) -> str:
        digest = hashlib.sha256()
        with self._http.stream("GET", f"/api/v1/jobs/{job_id}/result") as answer, temporary.open("wb") as file:
            if answer.status_code != httpx.codes.OK:
                answer.read()
                _checked(answer)
            for chunk in answer.iter_bytes(CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
        return digest.hexdigest()


def _checked(answer: httpx.Response) -> dict[str, Any]:
    """The JSON object of a 2xx answer; `Unhealthy` with the problem's own words otherwise."""
    body = _object_in(answer)
    if answer.is_success and body is not None:
        return body
    request = answer.request
    raise Unhealthy(f"{request.method} {request.url.path}: HTTP {answer.status_code}: {_said(answer)}")


def _object_in(answer: httpx.Response) -> dict[str, Any] | None:
    try:
        body = answer.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _said(answer: httpx.Response) -> str:
    body = _object_in(answer) or {}
    return str(body.get("detail") or body.get("title") or answer.text[:300])
