"""One JSON object per line on stdout, like the appliance's other services."""

from __future__ import annotations

import json
from datetime import datetime, timezone

from keeper.settings import Settings


def log(settings: Settings, level: str, message: str, *, event: str) -> None:
    moment = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = {
        "@timestamp": moment,
        "log.level": level,
        "message": message,
        "service": "acme",
        "node_name": settings.node_name,
        "event": event,
    }
    print(json.dumps(line), flush=True)
