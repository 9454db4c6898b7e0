"""Alertmanager's webhook: an alert with the label `action: drain` takes its worker out of the line for as long as it
fires. The body is Alertmanager's, version 4: https://prometheus.io/docs/alerting/latest/configuration/#webhook_config
"""

from __future__ import annotations

import logging
from typing import Final, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from appliance.api.nodes import ALIVE_SECONDS, give, others_work, take_back
from appliance.api.problems import documented, unavailable
from appliance.api.services import Services, ServicesHere, get_operator, patiently
from appliance.logs import fields
from appliance.queue.nodes import Look
from appliance.queue.orders import Order, OrderKind

log = logging.getLogger(__name__)
router = APIRouter(prefix="/api/v1/alerts", tags=["nodes"], responses=documented(400, 401, 403, 413, 422, 503))

BY: Final = "alertmanager"
HOLD_SECONDS: Final = 1500.0
"""An order ends this long after Alertmanager's last word, which it repeats every 600 s: one of them may get lost. Not
much later, as nobody is told of an alert's end while HostDown or GpuLost inhibits it."""
MOST_ALERTS: Final = 1000


class Alert(BaseModel):
    status: Literal["firing", "resolved"]
    labels: dict[str, str]
    annotations: dict[str, str] = {}


class AlertGroup(BaseModel):
    alerts: list[Alert] = Field(max_length=MOST_ALERTS)


class AlertAnswer(BaseModel):
    """What was done about each worker, by its name: drained, left (and why), or back."""

    workers: dict[str, str]


@router.post("", response_model=AlertAnswer, dependencies=[Depends(get_operator)])
async def take_alerts(services: ServicesHere, group: AlertGroup) -> AlertAnswer:
    """503 where a worker should come back but its agent is silent: Alertmanager asks again."""
    look = await patiently(services, services.queue.nodes.look)
    done: dict[str, str] = {}
    silent: list[str] = []
    for alert in group.alerts:
        name = worker_of(alert.labels)
        if alert.labels.get("action") != "drain" or name not in {worker.name for worker in look.workers}:
            continue
        if alert.status == "firing":
            done[name] = await _drain(services, look, name, alert)
        elif _is_alive(look, name):
            done[name] = await _bring_back(services, look, name)
        else:
            silent.append(name)
    if silent:
        raise unavailable(f"{', '.join(silent)}: the agent is silent, so it stays drained for now")
    return AlertAnswer(workers=done)


def worker_of(labels: dict[str, str]) -> str:
    return f"{labels.get('node_name', '')}/{labels.get('gpu_id', '')}"


def _is_alive(look: Look, name: str) -> bool:
    return any(worker.name == name and worker.heartbeat_age_seconds < ALIVE_SECONDS for worker in look.workers)


async def _drain(services: Services, look: Look, name: str, alert: Alert) -> str:
    existing = look.orders.get(name)
    if existing is not None and existing.by != BY:
        return f"left: {existing.describe()}"
    if existing is None and not others_work(look, name):
        log.warning("%s is the last node that takes work: not drained", name, extra=fields(event="drain_refused"))
        return "left: it is the last node that takes work"
    reason = f"{alert.labels.get('alertname', 'an alert')}: {alert.annotations.get('summary', '')}"[:200]
    order = Order(OrderKind.DRAIN, BY, look.now, reason, until=look.now + HOLD_SECONDS)
    await patiently(services, lambda: give(services, {name: order}))
    return "drained"


async def _bring_back(services: Services, look: Look, name: str) -> str:
    """Only what Alertmanager itself has ordered."""
    existing = look.orders.get(name)
    if existing is None or existing.by != BY:
        return "left: " + (existing.describe() if existing else "there is no order")
    await patiently(services, lambda: take_back(services, [name], BY))
    return "back"
