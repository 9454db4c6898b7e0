"""The OpenAPI description: what FastAPI cannot know from the routes is added here, once."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from appliance.api.auth import OPEN_PATHS
from appliance.api.problems import PROBLEM_SCHEMA
from appliance.job import JobRequest

DESCRIPTION = """\
Errors are `application/problem+json` (RFC 9457); `type` is a stable slug. A job's events also come over a WebSocket
at `/api/v1/jobs/{job_id}/ws?last_event_id=…`, as JSON messages `{id, event, data}`.
"""
KEY_SCHEMES: dict[str, dict[str, str]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "the API key"},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    "basic": {"type": "http", "scheme": "basic", "description": "any name, the API key as password"},
}


def install_openapi(app: FastAPI) -> None:
    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _describe(app)
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]  # the way FastAPI documents


def _describe(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes)
    components = schema.setdefault("components", {})
    components["securitySchemes"] = KEY_SCHEMES
    schemas = components.setdefault("schemas", {})
    # FastAPI writes bounds as floats, and as one of those the greatest seed is one too many.
    request = JobRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= {"Problem": PROBLEM_SCHEMA, **request.pop("$defs"), "JobRequest": request}
    schema["security"] = [{name: []} for name in KEY_SCHEMES]
    for path in OPEN_PATHS & schema["paths"].keys():
        for operation in schema["paths"][path].values():
            operation["security"] = []
    return schema
