"""A foreign AUTOMATIC1111 with the AnimateDiff extension in the place of our own webui."""

from appliance.agent.a1111.adapter import A1111

__all__ = ["A1111"]
