"""What a result is counted as. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.job import Capabilities, JobRequest
from appliance.job_fields import model_stem


@dataclass(frozen=True)
class Made:
    """`model`: the checkpoint, by the request or else the worker's own; empty where neither is known."""

    model: str = ""
    video_seconds: float = 0.0


def made_of(request: Mapping[str, Any], capabilities: Capabilities | None) -> Made:
    asked = request.get("model")
    own = (capabilities.models if capabilities else None) or ("",)
    frames, fps = _number(request, "frames"), _number(request, "fps")
    return Made(model_stem(asked) if isinstance(asked, str) else own[0], frames / fps if fps > 0 else 0.0)


def _number(request: Mapping[str, Any], name: str) -> float:
    value = request.get(name, JobRequest.model_fields[name].default)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0
