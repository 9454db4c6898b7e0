"""The parameters of a job that its end is told with: for logs, and for finding out what failures have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from appliance.job import PICTURES, JobRequest

LOGGED: Final = (
    *("width", "height", "frames", "fps", "steps", "cfg_scale", "sampler", "scheduler", "format"),
    *("model", "motion_module", "vae", "clip_skip", "denoising_strength"),
    *("context_batch_size", "context_overlap", "closed_loop"),
)
KEPT_CHARS: Final = 4096
"""Of one job's parameters in Redis: eight LoRAs of the longest names still fit."""


def describe_for_log(request: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters worth correlating failures with; never the prompt or a picture, which belong to the user."""
    filled = {name: JobRequest.model_fields[name].get_default(call_default_factory=True) for name in LOGGED}
    filled.update({name: request[name] for name in LOGGED if name in request})
    filled["format"] = [getattr(item, "value", item) for item in filled["format"]]
    filled["loras"] = [lora.get("name") for lora in request.get("loras", [])]
    filled["controlnets"] = [control.get("model") for control in request.get("controlnets", [])]
    filled["sparse_control"] = (request.get("sparse_control") or {}).get("model")
    free_init = request.get("free_init")
    filled["free_init"] = None if free_init is None else free_init.get("iterations", 3)
    filled["pictures"] = [name for name in PICTURES if request.get(name)]
    return filled


def parameters_to_keep(request: Mapping[str, Any]) -> str:
    """The same as JSON, without what is not set, for the job's record: its request is gone an hour after its end.

    Empty for a request that cannot be described, and for one whose parameters are too long to keep.
    """
    try:
        described = describe_for_log(request)
    except (TypeError, AttributeError):
        return ""
    set_ones = {name: value for name, value in described.items() if value not in (None, False, [])}
    text = json.dumps(set_ones, sort_keys=True, separators=(",", ":"))
    return text if len(text) <= KEPT_CHARS else ""
