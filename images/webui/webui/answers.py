"""What every route shares: errors as RFC 9457 problems, and JSON bodies of bounded size."""

from __future__ import annotations

import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from webui.request import RequestError

BODY_LIMIT = 25 << 20  # a job of 24 MiB at most, and the order around it


def problem(status: int, slug: str, detail: str, headers: dict[str, str] | None = None, **more: Any) -> JSONResponse:
    """RFC 9457."""
    body = {"type": slug, "title": slug.replace("-", " "), "status": status, "detail": detail, **more}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


async def read_json(request: Request) -> Any:
    """Raises 413 as soon as the limit is passed, whatever the headers promised."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_LIMIT:
            raise HTTPException(413, f"the body is larger than {BODY_LIMIT} bytes")
    try:
        value = json.loads(bytes(body))
        # Half a surrogate pair is JSON, but not text; 1e999 is JSON, but no number that could be told again.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise RequestError([("body", f"is not JSON: {type(error).__name__}")]) from error
    return value
