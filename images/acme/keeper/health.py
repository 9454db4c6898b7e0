"""Healthy: the loop turns, and nginx has a certificate that is not about to end."""

from __future__ import annotations

import datetime
import sys
import time

from keeper import pair
from keeper.settings import Settings

SILENCE_SECONDS = 30.0
SHARE_LEFT = 0.1
"""certbot renews with a third of the life left; with a tenth, it has failed for long."""


def check(settings: Settings) -> int:
    fault = _fault(settings)
    if fault:
        print(fault, file=sys.stderr)
    return 1 if fault else 0


def _fault(settings: Settings) -> str:
    try:
        silent = time.time() - settings.pulse.stat().st_mtime
    except OSError:
        return "not started yet"
    if silent > SILENCE_SECONDS:
        return f"the loop has not turned for {silent:.0f} s"
    shown = pair.shown(settings.tls)
    if shown is None:
        return "no certificate yet; the log says why"
    if fault := shown.fault:
        return fault
    leaf = shown.leaf
    left = leaf.not_valid_after_utc - datetime.datetime.now(datetime.timezone.utc)
    if left < SHARE_LEFT * (leaf.not_valid_after_utc - leaf.not_valid_before_utc):
        return f"the certificate ends in {left.total_seconds() / 3600:.0f} h and could not be renewed; the log says why"
    return ""
