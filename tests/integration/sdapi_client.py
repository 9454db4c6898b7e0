"""A1111's own client, `webuiapi` as it is on PyPI, and what tests of its API share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import requests
import webuiapi
from PIL import Image


def client_of(url: str, headers: dict[str, str] | None = None, **more: Any) -> webuiapi.WebUIApi:
    """`url` of the server; small steps, since every test waits for them."""
    api = webuiapi.WebUIApi(baseurl=f"{url}/sdapi/v1", sampler="Euler", steps=3, **more)
    api.session.trust_env = False
    api.session.headers.update(headers or {})
    api.check_extensions()
    return api


def picture(colour: str = "teal") -> Image.Image:
    return Image.new("RGB", (64, 64), colour)


class Background:
    """A call in a thread of its own: the client's calls block until their video is done."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: Exception | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._call()
        except (RuntimeError, requests.RequestException) as error:
            self.error = error

    def wait(self, seconds: float = 30) -> Any:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"no answer within {seconds} s"
        if self.error is not None:
            raise self.error
        return self.result
