"""Healthy: the loop turns.

Whether there is a certificate is not asked here: a directory's limit or a missing DNS record would have `up` wait for
it, and no other host be started. The log tells that, and the alerts CertificatePlaceholder and CertificateEnding.
"""

from __future__ import annotations

import sys
import time

from keeper.settings import Settings

SILENCE_SECONDS = 30.0


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
    return f"the loop has not turned for {silent:.0f} s" if silent > SILENCE_SECONDS else ""
