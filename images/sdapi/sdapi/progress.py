"""How far a call is: `/sdapi/v1/progress` and `/internal/progress`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STATE: dict[str, Any] = {
    "skipped": False,
    "interrupted": False,
    "stopping_generation": False,
    "job": "",
    "job_count": 0,
    "job_timestamp": "0",
    "job_no": 0,
    "sampling_step": 0,
    "sampling_steps": 0,
}


@dataclass(frozen=True)
class Progress:
    """Of one running call: its `job_no`-th of `job_count` jobs is at `step` of `steps`, after `elapsed` seconds.

    `preview` is a JPEG in base64. `text` is what a person may read: where in a queue it waits, for one."""

    task_id: str
    job_count: int
    job_no: int
    step: int
    steps: int
    timestamp: str
    elapsed: float = 0.0
    preview: str | None = None
    interrupted: bool = False
    queued: bool = False
    text: str | None = None

    @property
    def fraction(self) -> float:
        within = self.step / (self.steps * self.job_count) if self.steps else 0.0
        return min(0.01 + self.job_no / self.job_count + within, 1.0)

    @property
    def eta(self) -> float:
        """Seconds left, if it goes on as until now."""
        return max(0.0, self.elapsed / self.fraction - self.elapsed) if self.fraction > 0.01 else 0.0


def show(now: Progress | None, *, skip_image: bool = False) -> dict[str, Any]:
    if now is None:
        return {"progress": 0.0, "eta_relative": 0.0, "state": dict(STATE), "current_image": None, "textinfo": None}
    state = STATE | {
        "interrupted": now.interrupted,
        "job": now.task_id,
        "job_count": now.job_count,
        "job_timestamp": now.timestamp,
        "job_no": now.job_no,
        "sampling_step": now.step,
        "sampling_steps": now.steps,
    }
    image = None if skip_image else now.preview
    told = {"progress": now.fraction, "eta_relative": now.eta, "state": state}
    return told | {"current_image": image, "textinfo": now.text}


def show_task(now: Progress | None, *, completed: bool, request: Mapping[str, Any]) -> dict[str, Any]:
    """Of the task that `/internal/progress` was asked for; None when it is not at work (any more, or ever)."""
    if now is None or now.queued:
        waiting = {"active": False, "queued": now is not None, "completed": completed, "progress": None, "eta": None}
        text = (now.text if now else None) or ("In queue..." if now else "Waiting...")
        return waiting | {"live_preview": None, "id_live_preview": -1, "textinfo": text}
    answer: dict[str, Any] = {"active": True, "queued": False, "completed": False}
    answer |= {"progress": now.fraction, "eta": now.eta, "textinfo": now.text}
    number = now.job_no * (now.steps or 1) + now.step
    wanted = request.get("live_preview", True) is not False and request.get("id_live_preview", -1) != number
    if now.preview is not None and wanted:
        return answer | {"live_preview": f"data:image/jpeg;base64,{now.preview}", "id_live_preview": number}
    seen = request.get("id_live_preview", -1)
    return answer | {"live_preview": None, "id_live_preview": seen if isinstance(seen, int) else -1}
