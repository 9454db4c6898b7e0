"""The release as cluster.yaml says it: put there at the end of an upgrade, and taken out again on the way back. Pure.

What somebody else has written there meanwhile stays, and is told.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from generator.journal import Journal
from generator.marks import show_path
from generator.rollout import Release
from generator.scalar_edit import values_at, with_values

PLACES = {
    "tag": ("images", "tag"),
    "checkpoint": ("models", "checkpoint"),
    "motion_module": ("models", "motion_module"),
}


@dataclass(frozen=True)
class Edit:
    """`told`: what a person has to know of it."""

    text: str
    told: tuple[str, ...] = ()


def with_release_in(text: str, now: Release, then: Release, file: str) -> str:
    """Raises `UserError` where something of what changes does not stand there."""
    return with_values(text, {PLACES[name]: value for name, (_, value) in _changes(now, then).items()}, file)


def brought_to_new(text: str, journal: Journal, file: str) -> Edit:
    return _moved(text, journal.old, journal.new, file)


def taken_back(text: str, journal: Journal, file: str) -> Edit:
    """The very text that was there, unless the file has been edited since: then the release in it alone."""
    if not journal.old_text:  # the upgrade has not written it: what stands there is somebody's own
        return Edit(text, _unlike(text, journal.new, journal.old, file))
    if text in (journal.old_text, brought_to_new(journal.old_text, journal, file).text):
        return Edit(journal.old_text)
    edit = _moved(text, journal.new, journal.old, file)
    edited = f"{file} has been edited during the upgrade: of it only the release goes back"
    return Edit(edit.text, edit.told if edit.text == text else (edited, *edit.told))


def _moved(text: str, now: Release, then: Release, file: str) -> Edit:
    changes = {PLACES[name]: values for name, values in _changes(now, then).items()}
    stands = values_at(text, changes, file)
    edited = with_values(text, {place: new for place, (old, new) in changes.items() if stands[place] == old}, file)
    return Edit(edited, _unlike(edited, now, then, file))


def _unlike(text: str, now: Release, then: Release, file: str) -> tuple[str, ...]:
    wanted = {PLACES[name]: value for name, (_, value) in _changes(now, then).items()}
    stands = values_at(text, wanted, file)
    return tuple(
        f"{file}: {show_path(place)} is {json.dumps(stands[place])} and stays so, "
        f"but the cluster runs {json.dumps(value)}"
        for place, value in wanted.items()
        if stands[place] != value
    )


def _changes(now: Release, then: Release) -> dict[str, tuple[str, str]]:
    values = {name: (str(getattr(now, name)), str(getattr(then, name))) for name in PLACES}
    return {name: (old, new) for name, (old, new) in values.items() if old != new}
