"""What the webui is asked to make, built without copying a request that may be 15 MB more often than needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.agent.memory import Memory, memory_for
from appliance.job import PICTURES, attempt_folder, job_folder
from appliance.parameters import parameters_to_keep
from appliance.queue import Claim


@dataclass(frozen=True)
class Order:
    """`request` lacks the pictures that the job works from; `body` is the whole, as JSON; `parameters` are those that
    are kept for finding causes, or empty."""

    request: Mapping[str, Any]
    memory: Memory
    body: bytes
    parameters: str


def make_order(claim: Claim, *, plain: bool) -> Order:
    """`plain` leaves out what a webui of the time before checkpoints would refuse. Raises ValueError."""
    request = json.loads(claim.body)
    if not isinstance(request, dict):
        raise ValueError("it is not a JSON object")
    parameters = parameters_to_keep(request)
    for name in PICTURES:
        request.pop(name, None)
    memory = Memory() if plain else memory_for(request, claim.ooms)
    head: dict[str, Any] = {
        "job": claim.job_id,
        "fence": claim.fence,
        "output_dir": attempt_folder(claim.job_id, claim.fence),
    }
    if not plain:
        head |= {"checkpoint_dir": f"{job_folder(claim.job_id)}/checkpoint", "memory": memory.as_dict()}
    # The request is JSON already: writing it anew would hold up the heartbeats for as long as it takes.
    text = f'{json.dumps(head)[:-1]}, "request": {claim.body}}}'
    return Order(request, memory, text.encode(), parameters)
