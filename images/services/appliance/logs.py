"""One JSON object per line on stdout, `@timestamp` first, so that a shipper needs no parsing rules."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any

from appliance.settings import Common

# Fields a record may carry through `extra=`, in the order they are written.
FIELDS = ("gpu_id", "worker", "job_id", "attempt", "event", "reason")
EXTRA = "fields"


class JsonLines(logging.Formatter):
    def __init__(self, service: str, node_name: str, worker: str | None = None) -> None:
        super().__init__()
        self._fixed: dict[str, Any] = {"service": service, "node_name": node_name}
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, tz=timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "@timestamp": moment.replace("+00:00", "Z"),
            "log.level": record.levelname.lower(),
            "message": record.getMessage(),
            **self._fixed,
        }
        fields: dict[str, Any] = dict(getattr(record, EXTRA, {}))
        if self._worker is not None:
            fields.setdefault("worker", self._worker)
            fields.setdefault("gpu_id", self._worker.rpartition("/")[2])
        line.update({name: fields.pop(name) for name in FIELDS if name in fields})
        line.update(fields)
        if record.exc_info:
            line["error.stack_trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(common: Common, worker: str | None = None) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines(common.service, common.node_name, worker))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(common.log_level.upper())
    for chatty in ("httpx", "httpcore", "uvicorn.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def fields(**values: Any) -> dict[str, dict[str, Any]]:
    """The `extra=` argument of a log call: `log.info("text", extra=fields(job_id=…))`."""
    return {EXTRA: {name: value for name, value in values.items() if value is not None}}


class OnceUntilChanged:
    """Logs a lasting condition when it begins and when it ends, not on every retry in between."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._current: str | None = None

    def failing(self, message: str, **values: Any) -> None:
        kind = message.split(":", 1)[0]
        if kind != self._current:
            self._current = kind
            self._logger.warning(message, extra=fields(**values))

    def fine(self, message: str, **values: Any) -> None:
        if self._current is not None:
            self._current = None
            self._logger.info(message, extra=fields(**values))
