"""Which pages may ask."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sdapi.origin import OwnPages, is_own_origin


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ({"host": "node:7860"}, True),
        ({"host": "node:7860", "origin": "http://node:7860"}, True),
        ({"host": "node", "origin": "http://node:80"}, True),
        ({"host": "inner", "x-forwarded-host": "studio.example", "origin": "https://studio.example"}, True),
        (
            {
                "host": "studio.example",
                "x-forwarded-host": "studio.example:8443",
                "origin": "https://studio.example:8443",
            },
            True,
        ),
        ({"host": "node:7860", "origin": "http://node:7861"}, False),
        ({"host": "node", "origin": "http://evil.example"}, False),
        ({"host": "node", "origin": "http://node.evil.example"}, False),
        ({"host": "node", "origin": "null"}, False),
        ({"host": "node", "origin": ""}, False),
        ({"host": "node", "origin": "http://node:99999999"}, False),
        ({"host": "node", "origin": "http://["}, False),
    ],
)
def test_only_our_own_pages_may_ask(headers: dict[str, str], own: bool) -> None:
    assert is_own_origin(headers) is own


@pytest.mark.parametrize(
    ("origin", "status"), [(b"http://node", 200), (b"http://evil.example", 403), (b"http://[", 403)]
)
async def test_a_post_of_a_strange_page_is_refused_in_a1111_s_shape(origin: bytes, status: int) -> None:
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "headers": [(b"host", b"node"), (b"origin", origin)]}
    await OwnPages(app)(scope, None, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == status
    if status == 403:
        assert json.loads(sent[1]["body"])["error"] == "HTTPException"
