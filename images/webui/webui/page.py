"""The node's own page: what it is and what it does right now. One file, no build step, works offline."""

from __future__ import annotations

from html import escape
from typing import Any

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{node} · AnimateDiff</title>
<style nonce="{nonce}">
  :root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }}
  body {{ max-width: 40rem; margin: 3rem auto; padding: 0 1rem }}
  dl {{ display: grid; grid-template-columns: 10rem 1fr; gap: .3rem 1rem }}
  dt {{ opacity: .7 }} dd {{ margin: 0; overflow-wrap: anywhere }}
  progress {{ width: 100% }}
</style>
<h1>{node}</h1>
<dl>{rows}</dl>
<progress id="bar" aria-label="Progress of the running job" value="0" max="1"></progress>
<p id="note" role="status"></p>
<script nonce="{nonce}">
  const note = document.getElementById("note");
  async function refresh() {{
    try {{
      const answer = await fetch("internal/state", {{ cache: "no-store" }});
      if (!answer.ok) throw new Error("HTTP " + answer.status);
      const state = await answer.json();
      for (const cell of document.querySelectorAll("dd")) cell.textContent = state[cell.id] ?? "none";
      document.getElementById("bar").value = state.total_steps ? state.step / state.total_steps : 0;
      note.textContent = "";
    }} catch (error) {{ note.textContent = "No answer from this node: " + error.message; }}
    setTimeout(refresh, 1000);
  }}
  refresh();
</script>
"""

LABELS = {
    "status": "Status",
    "message": "Message",
    "engine": "Engine",
    "checkpoint": "Checkpoint",
    "motion_module": "Motion module",
    "fingerprint": "Fingerprint",
    "busy": "Running job",
    "phase": "Phase",
    "step": "Step",
    "total_steps": "of",
}


def render_page(state: dict[str, Any], nonce: str) -> str:
    rows = "".join(
        f'<dt>{label}</dt><dd id="{name}">{escape(str("none" if state.get(name) is None else state[name]))}</dd>'
        for name, label in LABELS.items()
    )
    return PAGE.format(node=escape(str(state["node"])), rows=rows, nonce=escape(nonce))
