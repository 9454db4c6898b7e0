"""Asks when it is due, hands over what it got, tells what went wrong. A signal only sets a flag.

SIGUSR1 tries at once, for after DNS has been put right; SIGUSR2 renews at once, however fresh the certificate is.
"""

from __future__ import annotations

import random
import signal
import time

from keeper import certbot, pair, schedule, tries
from keeper.log import log
from keeper.settings import Settings

TURN_SECONDS = 0.5


class Keeper:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = False
        self._asked = self._force = False

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._end())
        signal.signal(signal.SIGUSR1, lambda *_: self._ask())
        signal.signal(signal.SIGUSR2, lambda *_: self._ask(force=True))
        self._hand_over()
        due = schedule.after_failures(time.time(), tries.read(self._settings.tries))
        log(self._settings, "info", f"next try in {due - time.time():.0f} s", event="acme_start")
        while self._turns():
            # A clock that was set back must not put it off.
            due = min(due, time.time() + schedule.EVERY_SECONDS + schedule.JITTER_SECONDS)
            if self._asked or time.time() >= due:
                due = self._try()
            time.sleep(TURN_SECONDS)
        return 0

    def _turns(self) -> bool:
        """Whether to go on; called all the time, for the health check to see."""
        self._settings.pulse.touch()
        return not self._stop

    def _try(self) -> float:
        """Ask once. Returns when to ask again. The try counts as failed until it is seen to have succeeded."""
        force, self._asked, self._force = self._force, False, False
        settings, now = self._settings, time.time()
        failures = [*schedule.recent_failures(now, tries.read(settings.tries)), now]
        tries.write(settings.tries, failures)
        result = certbot.run(settings, certbot.arguments(settings, force=force), self._turns)
        if result.done and self._hand_over():
            tries.write(settings.tries, [])
            return schedule.after_success(time.time(), random.SystemRandom().random())
        due = schedule.after_failures(time.time(), failures)
        if not self._stop:
            text = f"no certificate; next try in {due - time.time():.0f} s. {result.output}"
            log(settings, "error", text, event="acme_failed")
        return due

    def _hand_over(self) -> bool:
        """Whether nginx has what certbot got last."""
        settings = self._settings
        issued = pair.issued(settings.lineage)
        if issued is None:
            return False
        if fault := issued.fault:
            log(settings, "error", f"what certbot has got is not used: {fault}", event="acme_unusable")
            return False
        if issued != pair.shown(settings.tls):
            try:
                pair.show(issued, settings.tls)
            except OSError as error:
                text = f"{error.filename or settings.tls}: {error.strerror}; nginx goes on with the old certificate"
                log(settings, "error", text, event="acme_unusable")
                return False
            end = issued.leaf.not_valid_after_utc.isoformat(timespec="seconds")
            text = f"certificate {issued.leaf.serial_number:x} for {settings.name}, valid until {end}"
            log(settings, "info", text, event="acme_renewed")
        return True

    def _end(self) -> None:
        self._stop = True

    def _ask(self, *, force: bool = False) -> None:
        self._asked, self._force = True, self._force or force


def keep(settings: Settings) -> int:
    return Keeper(settings).run()
