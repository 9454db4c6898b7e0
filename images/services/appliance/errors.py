"""The package's exceptions: one root, caught once in `__main__`."""

from __future__ import annotations

from collections.abc import Sequence


class ApplianceError(Exception):
    """Anything this package raises on purpose; its text is meant for an operator."""


class SettingsError(ApplianceError):
    """Every problem found in the environment and the secret files, one per line."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class StorageError(ApplianceError):
    """A volume is missing, is not the one that was prepared, or cannot be written."""


class QueueError(ApplianceError):
    """The queue answered something that this version does not understand."""


class QueueUnavailable(QueueError):  # noqa: N818 - reads as what happened
    """Redis cannot be reached or cannot be written now; trying again later is right."""


class UnsafeRedis(QueueError):  # noqa: N818 - reads as what happened
    """Redis is configured so that it may lose accepted jobs; starting would be a lie."""
