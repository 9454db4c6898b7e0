"""What to do about a kind of failure: the first fitting entry of a curated list. Pure, but for reading the list."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from string import Formatter
from typing import Any, Final, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, field_validator

from appliance.causes.correlate import Finding
from appliance.causes.features import PREFERENCE
from appliance.causes.fingerprint import Fingerprint
from appliance.causes.study import Safe
from appliance.gpu import Gpu
from appliance.job import Reason

FILE: Final = "knowledge.yaml"
PLACES: Final = frozenset({"parameter", "range", "name", "value"})
T = TypeVar("T")


class Entry(BaseModel):
    """As the head of knowledge.yaml explains it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    class When(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)

        reason: tuple[Reason, ...] = ()
        xid: tuple[int, ...] = ()
        symptom: tuple[str, ...] = ()
        parameter: tuple[str, ...] = ()
        range: Literal["above", "at most", "is"] | None = None
        above: float | None = None
        gpu_below_gb: float | None = None

        @field_validator("reason", "xid", "symptom", "parameter", mode="before")
        @classmethod
        def _accept_one(cls, value: object) -> object:
            return value if isinstance(value, list) else [value]

        @field_validator("parameter")
        @classmethod
        def _know_parameters(cls, value: tuple[str, ...]) -> tuple[str, ...]:
            if unknown := [name for name in value if name not in PREFERENCE]:
                raise ValueError(f"there is no parameter {', '.join(unknown)}; one of {', '.join(PREFERENCE)}")
            return value

    when: When
    say: str
    otherwise: float | None = None

    @field_validator("say")
    @classmethod
    def _know_places(cls, value: str) -> str:
        if unknown := {name for _, name, _, _ in Formatter().parse(value) if name is not None} - PLACES:
            raise ValueError(f"{{{', '.join(sorted(unknown))}}} cannot be filled in; only {', '.join(sorted(PLACES))}")
        return value


Knowledge = Sequence[Entry]


def parse(text: str) -> Knowledge:
    """Raises ValueError (pydantic's, or yaml's as one) for what is no list of entries."""
    try:
        raw: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"no YAML: {error}") from error
    if not isinstance(raw, list):
        raise ValueError("not a list of entries")
    return tuple(Entry.model_validate(item) for item in raw)


@cache
def knowledge() -> Knowledge:
    return parse((files(__package__) / FILE).read_text(encoding="utf-8"))


def suggest(
    known: Knowledge, fingerprint: Fingerprint, finding: Finding | None = None, safe: Safe | None = None
) -> str | None:
    """None where the list knows nothing. Without a finding only what is said of the failure itself fits."""
    for entry in known:
        when = entry.when
        if not (_fits(when.reason, fingerprint.reason) and _fits(when.symptom, fingerprint.symptom.split(" ")[0])):
            continue
        if not _fits(when.xid, fingerprint.xid) or (finding is None) != (when.range is None):
            continue
        if finding is None:
            return entry.say
        if _fits_finding(when, finding) and (text := _fill(entry, finding, safe)) is not None:
            return text
    return None


def _fits(wanted: Sequence[T], there: T | None) -> bool:
    return not wanted or there in wanted


def _fits_finding(when: Entry.When, finding: Finding) -> bool:
    bucket = finding.bucket
    if bucket.kind != when.range or not _fits(when.parameter, bucket.parameter):
        return False
    if when.above is not None and not (isinstance(bucket.value, float) and bucket.value >= when.above):
        return False
    return when.gpu_below_gb is None or all(_gigabytes(gpu) < when.gpu_below_gb for gpu in finding.gpus)


def _gigabytes(label: str) -> float:
    gpu = Gpu.parse(label)
    return gpu.memory_mib * 2**20 / 1e9 if gpu else float("inf")


def _fill(entry: Entry, finding: Finding, safe: Safe | None) -> str | None:
    value = safe.value if safe else entry.otherwise
    if value is None and "{value}" in entry.say:
        return None
    bucket = finding.bucket
    text = entry.say.format(
        parameter=bucket.parameter, range=bucket.text, name=bucket.value, value="" if value is None else f"{value:g}"
    )
    if safe and "{value}" in entry.say:
        text += f" (seen safe: {safe.attempts} attempts, {safe.failures} of them failed like this)"
    return text
