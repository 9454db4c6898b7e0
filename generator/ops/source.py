"""One address of a file: asking it, following it, and what its answers and its silence mean."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from generator import __version__
from generator.errors import UserError

REDIRECTS = 10
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_BUNDLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@dataclass(frozen=True)
class Limits:
    """How long a silent or slow server is waited for, and how often it is asked again."""

    connect_seconds: float = 10.0
    stall_seconds: float = 30.0
    stall_bytes: int = 16 << 10
    """Less than this within `stall_seconds` is as good as nothing."""
    tries: int = 5
    first_pause_seconds: float = 1.0
    longest_pause_seconds: float = 60.0


class SourceError(Exception):
    """This address does not give the file; another may."""


class BrokenError(Exception):
    """It may well work the next time; the server may have said when."""

    def __init__(self, message: str, pause_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.pause_seconds = pause_seconds


def open_client(limits: Limits) -> httpx.Client:
    """Proxies and certificate authorities come from the environment, as for other programs. UserError if not usable."""
    bundle = next((os.environ[name] for name in _BUNDLES if os.environ.get(name)), None)
    try:
        # The system's authorities, not a list of the library's own: a company's proxy is known there.
        authorities = ssl.create_default_context(cafile=bundle)
    except OSError as error:
        raise UserError(f"the certificate authorities in {bundle} cannot be read: {error.strerror or error}") from None
    try:
        return _make_client(limits, authorities)
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        # The environment's proxies are all that it reads.
        hint = "http://host:port is what they are written like in http_proxy, https_proxy and all_proxy"
        raise UserError(f"the environment names a proxy that cannot be used ({error}); {hint}") from None


def _make_client(limits: Limits, authorities: ssl.SSLContext) -> httpx.Client:
    return httpx.Client(
        timeout=httpx.Timeout(limits.stall_seconds, connect=limits.connect_seconds),
        verify=authorities,
        # Compressed bytes could be neither resumed nor counted.
        headers={"User-Agent": f"animatediff-ha/{__version__}", "Accept-Encoding": "identity"},
    )


def validator_of(answer: httpx.Response) -> str:
    """A strong ETag, or the date; a weak ETag may stand for different bytes. Empty: none that could be sent back."""
    etag = answer.headers.get("ETag", "")
    found = etag if etag.startswith('"') else str(answer.headers.get("Last-Modified", ""))
    return found if found.isascii() and found.isprintable() else ""


def contradict(one: str, other: str) -> bool:
    """Two validators of one kind that are not the same; a date says nothing about an ETag."""
    return bool(one and other) and one.startswith('"') == other.startswith('"') and one != other


@contextmanager
def opened(client: httpx.Client, url: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
    """The answer after all redirects. Followed here: httpx would read each redirect's body, however long it is."""
    request = client.build_request("GET", url, headers=headers)
    for _ in range(REDIRECTS + 1):
        answer = client.send(request, stream=True)
        try:
            following = answer.next_request
            if following is None:
                yield answer
                return
        finally:
            answer.close()
        if request.url.scheme == "https" and following.url.scheme != "https":
            raise SourceError(f"it redirects to {following.url.scheme}://{following.url.host}, without encryption")
        request = following
    raise SourceError(f"it redirects more than {REDIRECTS} times")


def refuse_status(answer: httpx.Response) -> None:
    status = answer.status_code
    if status in _PASSING:
        after = answer.headers.get("Retry-After", "")
        raise BrokenError(f"HTTP {status}", float(after) if after.isdecimal() else 0.0)
    if status in (401, 403):
        raise SourceError(f"HTTP {status}: not allowed; is a login or a licence asked for there?")
    if status not in (200, 206):
        raise SourceError(f"HTTP {status}{': not there' if status in (404, 410) else ''}")
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise SourceError("it answers compressed although it was asked not to")


@contextmanager
def transport_errors() -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException as error:
        what = "connect" if isinstance(error, httpx.ConnectTimeout) else "answer"
        raise BrokenError(f"it did not {what} in time") from None
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError) as error:  # the last: no name for a resolver
        raise SourceError(f"an address that cannot be used: {error}") from None
    except httpx.TransportError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            hint = "name your authorities' file in SSL_CERT_FILE"
            raise SourceError(f"its certificate is not trusted ({error}); {hint}") from None
        raise BrokenError(f"the connection failed: {error or type(error).__name__}") from None
