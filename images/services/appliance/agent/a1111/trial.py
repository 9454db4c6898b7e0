"""Whether an A1111 can be given jobs: it answers, has the extension, and makes a video; and what it can do then."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from dataclasses import dataclass
from typing import Any

from async_timeout import timeout

from appliance.agent.a1111.answer import WrongAnswerError, read_answer, read_error
from appliance.agent.a1111.client import Client, Unanswered
from appliance.agent.a1111.request import Known, trial_call
from appliance.agent.a1111.watch import ENGINE
from appliance.agent.webui import Ping, WebuiBroke, WebuiNotThere, WebuiRefused
from appliance.job import Capabilities
from appliance.settings import A1111Settings

log = logging.getLogger(__name__)

LONGEST_PAUSE_SECONDS = 30.0
MAX_FRAMES = 128


@dataclass(frozen=True)
class Proof:
    """Of an A1111 that has made a video."""

    ping: Ping
    known: Known


class Pause:
    """One that fails is not asked for a video again and again; one that is only not there yet costs nothing."""

    def __init__(self) -> None:
        self._failures = 0
        self._until = float("-inf")
        self.status = "not tried yet"

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._until

    def after(self, error: Exception) -> None:
        self._failures = 0 if isinstance(error, WebuiNotThere) else self._failures + 1
        # Of a thousand failures in a row, the power would be too large for a number.
        seconds = min(LONGEST_PAUSE_SECONDS, 2.0 ** min(self._failures - 1, 10)) if self._failures else 0.0
        self._until, self.status = time.monotonic() + seconds, str(error) or type(error).__name__

    def reset(self) -> None:
        self._failures, self._until = 0, float("-inf")


async def require_extension(client: Client) -> dict[str, Any]:
    """The A1111's options. Raises WebuiError when it does not answer or lacks AnimateDiff."""
    options = await client.ask("/sdapi/v1/options")
    scripts = await client.ask("/sdapi/v1/scripts")
    names = scripts.get("txt2img") if isinstance(scripts, dict) else None
    if "animatediff" not in [str(name).lower() for name in (names if isinstance(names, list) else [])]:
        raise WebuiRefused(503, "the AnimateDiff extension is not installed there, or not switched on")
    return options if isinstance(options, dict) else {}


async def prove(client: Client, settings: A1111Settings, options: dict[str, Any]) -> Proof:
    """Raises WebuiError unless it makes the smallest video."""
    call = trial_call(settings.motion_module)
    try:
        async with timeout(settings.load_seconds):
            status, body = await client.generate(call.path, call.body)
    except asyncio.TimeoutError:
        raise WebuiBroke(f"its first video was not ready in {settings.load_seconds:g} s") from None
    if status != 200:
        raise WebuiRefused(status, f"its first video failed: {read_error(status, body)[1]}")
    try:
        read_answer(body, call.formats, 1)  # two frames may be equal; a GIF of them is no still image yet
    except WrongAnswerError as error:
        raise WebuiRefused(503, f"its first video failed: {error}") from None
    known = await client.known()
    fingerprint = _fingerprint(options, await _checksum(client, options), settings.motion_module)
    log.info("the A1111 has made its first video", extra={"event": "a1111_ready"})
    return Proof(Ping(True, "ok", ENGINE, fingerprint, capabilities=_capabilities(known)), known)


async def _checksum(client: Client, options: dict[str, Any]) -> str:
    """Of the checkpoint that is loaded, as far as A1111 has computed one."""
    try:
        models = await client.ask("/sdapi/v1/sd-models")
    except Unanswered:
        return ""
    mine = [one for one in models if isinstance(one, dict)] if isinstance(models, list) else []
    loaded = (one for one in mine if one.get("title") == options.get("sd_model_checkpoint"))
    return next((str(one.get("sha256") or one.get("hash") or "") for one in loaded), "")


def _capabilities(known: Known) -> Capabilities:
    """Motion modules cannot be listed; an unknown one is told by the run that names it."""
    return Capabilities.parse(
        {
            "models": list(known.checkpoints) or None,
            "loras": list(known.loras) or None,
            "vaes": list(known.vaes) or None,
            "samplers": list(known.samplers) or None,
            "schedulers": list(known.schedulers) or None,
            "max_frames": MAX_FRAMES,
        }
    )


def _fingerprint(options: dict[str, Any], checksum: str, motion_module: str) -> str:
    """Equal for A1111s that load the same: what is known of it without reading its files."""
    facts = [options.get(name) for name in ("sd_model_checkpoint", "sd_vae", "CLIP_stop_at_last_layers")]
    text = json.dumps([ENGINE, *facts, checksum, motion_module])
    return hashlib.sha256(text.encode()).hexdigest()
