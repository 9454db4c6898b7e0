"""A node-local run as JSON: one shape for every answer and every message."""

from __future__ import annotations

from typing import Any

from webui.local import LocalRun
from webui.process import Run


def view_run(run: LocalRun, engine_run: Run | None) -> dict[str, Any]:
    """`blocked_by` says whose run a waiting one waits for: `cluster`, `local`, or null for the engine itself.

    File URLs are relative to the node's root."""
    return {
        "id": run.id,
        "state": run.state,
        "position": run.position,
        "blocked_by": blocked_by(engine_run) if run.state == "queued" else None,
        "phase": run.phase,
        "part": run.part,
        "parts": run.parts,
        "step": run.step,
        "total_steps": run.total_steps,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "request": run.described,
        "parameters": run.parameters,
        "files": [
            {
                "url": f"local/runs/{run.id}/files/{number}",
                "name": file.path.name,
                "media_type": file.media_type,
                "size_bytes": file.size_bytes,
                "sha256": file.sha256,
            }
            for number, file in enumerate(run.files)
        ],
        "error": {"reason": run.error[0], "message": run.error[1]} if run.error else None,
    }


def blocked_by(engine_run: Run | None) -> str | None:
    """Whose run has the engine: `cluster`, `local` or nobody's."""
    if engine_run is None:
        return None
    return "local" if engine_run.order.scratch else "cluster"
