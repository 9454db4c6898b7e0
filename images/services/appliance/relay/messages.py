"""Alertmanager's webhook (version 4) → what a robot takes, and what a robot's answer means. Pure.

DingTalk: https://open.dingtalk.com/document/robots/custom-robot-access, WeCom:
https://developer.work.weixin.qq.com/document/path/91770. Both answer 200 to all and say in `errcode` how it went.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import quote_plus

PRODUCT = "AnimateDiff"
"""In every message: a DingTalk robot may be set to take only what has a certain word in it."""
SHOWN = ("node_name", "gpu_id", "worker", "instance", "mountpoint")
TOO_OFTEN = frozenset({130101, 410100, 45009, 45033})
"""Errcodes that mean: later. DingTalk takes 20 messages a minute, WeCom as many."""


class Kind(str, Enum):
    DINGTALK = "dingtalk"
    WECOM = "wecom"


MOST_BYTES = {Kind.DINGTALK: 16_000, Kind.WECOM: 4_000}
"""A little less than each takes."""


class NoAlerts(ValueError):  # noqa: N818  (reads as what is the case)
    """What came is no notification of Alertmanager."""


class Verdict(Enum):
    TAKEN = 200
    REFUSED = 400
    """Alertmanager does not try again, and counts a failure."""
    LATER = 503
    """It does try again."""


@dataclass(frozen=True)
class Alert:
    name: str
    severity: str
    firing: bool
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


def read_alerts(body: Any) -> tuple[Alert, ...]:
    """Raises NoAlerts."""
    found = body.get("alerts") if isinstance(body, dict) else None
    if not isinstance(found, list) or not found:
        raise NoAlerts("there is no list `alerts`")
    return tuple(_alert(one) for one in found)


def _alert(one: Any) -> Alert:
    if not isinstance(one, dict):
        raise NoAlerts("an alert is no object")
    labels, annotations = _texts(one.get("labels")), _texts(one.get("annotations"))
    if "alertname" not in labels:
        raise NoAlerts("an alert has no name")
    return Alert(labels["alertname"], labels.get("severity", ""), one.get("status") != "resolved", labels, annotations)


def _texts(found: Any) -> dict[str, str]:
    """On one line each, so that nothing a label holds becomes a heading or a link of the message's own."""
    if not isinstance(found, dict):
        raise NoAlerts("an alert's labels or annotations are no object")
    return {str(key): " ".join(str(value).split()) for key, value in found.items()}


def request_body(kind: Kind, alerts: Sequence[Alert]) -> dict[str, Any]:
    """As much as the robot takes; what does not fit is counted at the end."""
    firing = sum(alert.firing for alert in alerts)
    cluster = next((alert.labels["cluster"] for alert in alerts if "cluster" in alert.labels), "")
    title = f"{PRODUCT} {cluster}: ".replace(" :", ":")
    title += f"{firing} firing" if firing else f"{len(alerts)} over"
    text = _within(MOST_BYTES[kind], f"### {title}", [_paragraph(alert) for alert in alerts])
    if kind is Kind.WECOM:
        return {"msgtype": "markdown", "markdown": {"content": text}}
    return {"msgtype": "markdown", "markdown": {"title": title, "text": text}}


def _paragraph(alert: Alert) -> str:
    state = alert.severity if alert.firing else "over"
    where = " ".join(alert.labels[name] for name in SHOWN if name in alert.labels)
    lines = [f"**{alert.name}** {state} {where}".rstrip(), alert.annotations.get("summary", "")]
    if alert.firing:
        lines += [alert.annotations.get("description", ""), f"> {alert.annotations.get('runbook', '')}"]
    return "\n\n".join(line for line in lines if line.strip("> "))


def _within(most: int, head: str, paragraphs: Sequence[str]) -> str:
    text, left = head, list(paragraphs)
    while left:
        rest = f"\n\n… and {len(left)} more"
        longer = f"{text}\n\n{left[0]}"
        if len((longer + (rest if len(left) > 1 else "")).encode()) > most:
            # One alone that is too long is cut; of several those that fit are told.
            return text + rest if text != head else longer.encode()[:most].decode(errors="ignore")
        text = longer
        del left[0]
    return text


def signed(url: str, secret: str, now_ms: int) -> str:
    """DingTalk's signature, which a robot may ask for."""
    digest = hmac.new(secret.encode(), f"{now_ms}\n{secret}".encode(), hashlib.sha256).digest()
    return f"{url}{'&' if '?' in url else '?'}timestamp={now_ms}&sign={quote_plus(base64.b64encode(digest))}"


def judge(status: int, body: Any) -> tuple[Verdict, str]:
    """What a robot's answer means, and why."""
    if status in (408, 429) or status >= 500:
        return Verdict.LATER, f"it answers {status}"
    if status >= 400 or not isinstance(body, dict):
        return Verdict.REFUSED, f"it answers {status}" + ("" if isinstance(body, dict) else " and no JSON object")
    code = body.get("errcode")
    why = f"errcode {code}: {' '.join(str(body.get('errmsg', '')).split())[:200]}"
    if code == 0:
        return Verdict.TAKEN, "ok"
    if code in TOO_OFTEN or code == -1:  # -1: the system is busy
        return Verdict.LATER, why
    return Verdict.REFUSED, why
