from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from appliance.relay.messages import MOST_BYTES, Kind, NoAlerts, Verdict, judge, read_alerts, request_body, signed


def alert(name: str = "GpuLost", status: str = "firing", **changes: Any) -> dict[str, Any]:
    return {
        "status": status,
        "labels": {
            "alertname": name,
            "severity": "critical",
            "cluster": "studio",
            "node_name": "gpu-01",
            "gpu_id": "0",
        },
        "annotations": {"summary": "GPU 0 is lost", "description": "The driver says so.", "runbook": "See to it."},
        **changes,
    }


def text_of(kind: Kind, *alerts: dict[str, Any]) -> str:
    body = request_body(kind, read_alerts({"alerts": list(alerts)}))
    assert body["msgtype"] == "markdown"
    text: str = body["markdown"]["content" if kind is Kind.WECOM else "text"]
    return text


def test_what_dingtalk_gets() -> None:
    body = request_body(Kind.DINGTALK, read_alerts({"alerts": [alert()]}))
    assert body["markdown"]["title"] == "AnimateDiff studio: 1 firing"
    assert body["markdown"]["text"].split("\n\n") == [
        "### AnimateDiff studio: 1 firing",
        "**GpuLost** critical gpu-01 0",
        "GPU 0 is lost",
        "The driver says so.",
        "> See to it.",
    ]


def test_what_is_over_needs_no_runbook() -> None:
    text = text_of(Kind.WECOM, alert(status="resolved"))
    assert text.split("\n\n") == ["### AnimateDiff studio: 1 over", "**GpuLost** over gpu-01 0", "GPU 0 is lost"]
    assert text_of(Kind.WECOM, alert(status="resolved"), alert()).startswith("### AnimateDiff studio: 1 firing\n")


@pytest.mark.parametrize("kind", Kind)
def test_what_does_not_fit_is_counted(kind: Kind) -> None:
    text = text_of(kind, *(alert(f"Alert{number}") for number in range(500)))
    assert len(text.encode()) <= MOST_BYTES[kind]
    told = text.count("**Alert")
    assert told > 5
    assert text.endswith(f"… and {500 - told} more")


@pytest.mark.parametrize("kind", Kind)
def test_one_that_is_too_long_is_cut_between_letters(kind: Kind) -> None:
    text = text_of(kind, alert(annotations={"summary": "灯" * 20_000}))
    assert MOST_BYTES[kind] - 3 < len(text.encode()) <= MOST_BYTES[kind]
    assert text.endswith("灯")


def test_a_label_makes_no_lines_of_its_own() -> None:
    labels = {"alertname": "A\n# B", "node_name": "x\r\n[link](http://evil)"}
    lines = text_of(Kind.DINGTALK, alert(labels=labels)).split("\n")
    assert "**A # B**  x [link](http://evil)" in lines
    assert not [line for line in lines[1:] if line.startswith("#")]


@pytest.mark.parametrize(
    "body",
    [
        *(None, [], "x", {}),
        *({"alerts": found} for found in (None, [], [1], [{"labels": {}}])),
        {"alerts": [{"labels": {"alertname": "x"}, "annotations": 3}]},
    ],
)
def test_anything_else_is_no_notification(body: Any) -> None:
    with pytest.raises(NoAlerts):
        read_alerts(body)


def test_the_signature_is_dingtalks() -> None:
    url = signed("https://robot.example/send?access_token=a", "SECabc", 1_700_000_000_000)
    asked = parse_qs(urlsplit(url).query)
    assert (asked["access_token"], asked["timestamp"]) == (["a"], ["1700000000000"])
    expected = hmac.new(b"SECabc", b"1700000000000\nSECabc", hashlib.sha256).digest()
    assert base64.b64decode(asked["sign"][0]) == expected
    assert signed("https://robot.example/send", "s", 1).startswith("https://robot.example/send?timestamp=1&sign=")


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, {"errcode": 0, "errmsg": "ok"}, Verdict.TAKEN),
        (200, {"errcode": 310000, "errmsg": "keywords not in content"}, Verdict.REFUSED),
        (200, {"errcode": 93000, "errmsg": "invalid webhook url"}, Verdict.REFUSED),
        (200, {"errcode": 130101, "errmsg": "send too fast"}, Verdict.LATER),
        (200, {"errcode": 45009, "errmsg": "api freq out of limit"}, Verdict.LATER),
        (200, {"errcode": -1, "errmsg": "system busy"}, Verdict.LATER),
        (200, {}, Verdict.REFUSED),
        (200, None, Verdict.REFUSED),
        (302, None, Verdict.REFUSED),
        (404, {}, Verdict.REFUSED),
        (429, None, Verdict.LATER),
        (502, None, Verdict.LATER),
    ],
)
def test_what_an_answer_means(status: int, body: Any, verdict: Verdict) -> None:
    assert judge(status, body)[0] is verdict
