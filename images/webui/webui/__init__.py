"""Generates AnimateDiff videos on one GPU (or CPU) for one agent."""

from __future__ import annotations

__version__ = "0.1.0"
