from __future__ import annotations

import pytest

from appliance.agent.ending import Failed, Finished, of_done_event, of_error_event, of_webui_error
from appliance.agent.webui import WebuiBroke, WebuiError, WebuiNotThere, WebuiRefused
from appliance.job import Reason
from appliance.queue import FailKind


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("OOM", FailKind.OOM),
        ("INVALID_INPUT", FailKind.PERMANENT),
        ("WORKER_LOST", FailKind.RELEASE),
        ("HOST_OOM", FailKind.ERROR),
        ("CUDA_ERROR", FailKind.ERROR),
        (None, FailKind.ERROR),
    ],
)
def test_reasons_choose_the_budget(reason: object, kind: FailKind) -> None:
    assert of_error_event({"reason": reason}).kind is kind


def test_a_full_storage_costs_a_job_nothing() -> None:
    ending = of_error_event({"reason": "UNKNOWN", "message": "no space left", "storage": True})
    assert (ending.refused, ending.reason, ending.message) == (True, Reason.UNKNOWN, "no space left")
    assert of_error_event({"reason": "UNKNOWN", "storage": "yes"}).kind is FailKind.ERROR


@pytest.mark.parametrize(
    ("error", "started", "kind", "refused"),
    [
        (WebuiRefused(422, "x"), False, FailKind.PERMANENT, False),
        (WebuiRefused(409, "x"), False, FailKind.REFUSED, True),
        (WebuiRefused(401, "x"), False, FailKind.REFUSED, True),
        (WebuiNotThere("x"), False, FailKind.REFUSED, True),
        (WebuiNotThere("x"), True, FailKind.CRASH, False),
        (WebuiBroke("x"), False, FailKind.CRASH, False),
        (WebuiBroke("x"), True, FailKind.CRASH, False),
    ],
)
def test_broken_webuis(error: WebuiError, started: bool, kind: FailKind, refused: bool) -> None:
    ending = of_webui_error(error, started=started)
    assert (ending.kind, ending.refused) == (kind, refused)


def test_done_needs_files_that_can_be_named() -> None:
    file = {"name": "v.mp4", "media_type": "video/mp4", "size_bytes": 1, "sha256": "0"}
    assert isinstance(of_done_event({"files": [file]}), Finished)
    for broken in ({}, {"files": [{"name": "../v"}]}, {"files": ["v"]}, {"files": [{**file, "name": "/etc/passwd"}]}):
        ending = of_done_event(broken)
        assert isinstance(ending, Failed)
        assert ending.reason is Reason.UNKNOWN
