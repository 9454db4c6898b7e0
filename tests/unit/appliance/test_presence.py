"""What a worker tells the queue about itself."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

from appliance.agent.presence import Presence
from appliance.agent.webui import AnyWebui, Ping
from appliance.job import Capabilities
from appliance.queue import Queue
from appliance.queue.types import Registration
from appliance.settings import AgentSettings


async def test_what_a_webui_can_do_is_kept_while_it_is_out_however_short_it_was_there() -> None:
    told: list[dict[str, Any]] = []

    class Recorder:
        async def register(self, worker: str, **about: Any) -> Registration:
            told.append(about)
            return Registration(1)

    settings = cast(AgentSettings, SimpleNamespace(worker="gpu-01/0"))
    presence = Presence(settings, cast(Queue, Recorder()), cast(AnyWebui, None))
    can = Capabilities.parse({"vram_mib": 8192})
    # Both between two registrations.
    presence.ping = Ping(ready=True, status="ok", capabilities=can)
    presence.ping = Ping(ready=False, status="loading")
    await presence._register()
    assert json.loads(told[0]["capabilities"])["vram_mib"] == 8192
