from __future__ import annotations

from typing import Any

import pytest

from appliance.agent.made import Made, made_of
from appliance.job import Capabilities

OWN = Capabilities(models=("sd15", "other"))


@pytest.mark.parametrize(
    ("request_", "capabilities", "made"),
    [
        ({}, OWN, Made("sd15", 2.0)),
        ({"model": "dream.safetensors", "frames": 32, "fps": 16}, OWN, Made("dream", 2.0)),
        ({"frames": 8}, None, Made("", 1.0)),
        ({}, Capabilities(models=()), Made("", 2.0)),
        ({"frames": "many", "fps": True}, OWN, Made("sd15", 0.0)),
        ({"fps": 0}, OWN, Made("sd15", 0.0)),
        ({"model": 5}, OWN, Made("sd15", 2.0)),
    ],
)
def test_what_a_result_counts_as(request_: dict[str, Any], capabilities: Capabilities | None, made: Made) -> None:
    assert made_of(request_, capabilities) == made
