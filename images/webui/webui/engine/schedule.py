"""Noise schedules that can begin in the middle."""

from __future__ import annotations

from typing import Any

from diffusers import DDIMScheduler


class ResumableDDIM(DDIMScheduler):  # type: ignore[misc]
    """Leaves out the first steps, as the pipeline itself cannot.

    The step size comes from the full number of steps, so the remaining ones are exactly what they would have been.
    DDIM keeps nothing between steps (and does not scale the first noise); a scheduler that looks back at earlier
    steps would give that out as `memory` and take it again as `remember`.
    """

    first_step = 0
    timesteps: Any

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device)
        self.timesteps = self.timesteps[self.first_step :]

    def memory(self) -> dict[str, Any]:
        return {}

    def remember(self, memory: dict[str, Any]) -> None:
        pass
