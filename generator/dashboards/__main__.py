"""`python -m generator.dashboards`: build all of them and write what has changed."""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from generator.dashboards import costs, errors, health, performance
from generator.dashboards.panels import numbered

FOLDER = Path(__file__).resolve().parents[2] / "config/grafana/dashboards"
MADE = {
    "health": health.dashboard,
    "performance": performance.dashboard,
    "errors": errors.dashboard,
    "cost": costs.dashboard,
}


def texts() -> dict[str, str]:
    """File name → JSON."""
    return {
        f"{name}.json": json.dumps(numbered(make()), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"
        for name, make in MADE.items()
    }


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in texts().items():
        path = FOLDER / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"{path} written")


if __name__ == "__main__":
    main()
