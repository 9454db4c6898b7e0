"""The curated list is read, holds no dead entries, and says what it should."""

from __future__ import annotations

import pytest

from appliance.causes.buckets import Bucket
from appliance.causes.correlate import Finding
from appliance.causes.fingerprint import RULES, Fingerprint
from appliance.causes.study import Safe
from appliance.causes.suggest import Entry, knowledge, parse, suggest
from appliance.job import Reason
from tests.unit.appliance.causes.synthetic import LARGE, SMALL


def failure(reason: Reason = Reason.UNKNOWN, xid: int | None = None, symptom: str = "") -> Fingerprint:
    return Fingerprint(reason, xid, symptom, "", "title")


def finding(parameter: str, kind: str, value: float | str, gpus: tuple[str, ...] = SMALL) -> Finding:
    bucket = Bucket(parameter, kind, value, 0)  # type: ignore[arg-type]
    return Finding(bucket, 100, 50, 100, 1, 2.0, 50.0, 10.0, 1e-9, 1e-8, 9.0, gpus)


def examples(entry: Entry) -> list[str | None]:
    """What is said of failures that are made to fit this entry, with and without a value that was seen to be safe."""
    when = entry.when
    known = failure((*when.reason, Reason.UNKNOWN)[0], (*when.xid, None)[0], (*when.symptom, "")[0])
    if when.range is None:
        return [suggest(knowledge(), known)]
    value = "x" if when.range == "is" else when.above or 100.0
    found = [finding(name, when.range, value, gpus) for name in (*when.parameter, "fps") for gpus in (SMALL, LARGE)]
    return [suggest(knowledge(), known, one, safe) for one in found for safe in (None, Safe(7, 30, 0))]


@pytest.mark.parametrize("entry", knowledge(), ids=lambda entry: entry.say[:30])
def test_no_entry_is_hidden_by_those_before_it(entry: Entry) -> None:
    start = entry.say.split("{")[0]
    assert any((said or "").startswith(start) for said in examples(entry)) or not start
    if not start:
        assert any((said or "").endswith(entry.say.split("}")[-1]) for said in examples(entry))


def test_symptoms_are_those_that_rules_know() -> None:
    known = {rule.symptom for rule in RULES}
    assert {symptom for entry in knowledge() for symptom in entry.when.symptom} <= known


def test_the_contracts_own_example() -> None:
    """`context_batch_size` above 16 on GPUs with less than 40 GB: the largest value seen to be safe, else 12."""
    oom, tight = failure(Reason.OOM), finding("context_batch_size", "above", 16.0)
    assert (suggest(knowledge(), oom, tight) or "").startswith(
        "ask for a context_batch_size of 12 at most on GPUs with"
    )
    said = suggest(knowledge(), oom, tight, Safe(14, 30, 1))
    assert said is not None
    assert said.startswith("ask for a context_batch_size of 14 at most on GPUs with less than 40 GB (seen safe: 30")
    for other in (finding("context_batch_size", "above", 16.0, LARGE), finding("context_batch_size", "above", 8.0)):
        assert "less than 40 GB" not in (suggest(knowledge(), oom, other) or "")
    assert "less than 40 GB" not in (suggest(knowledge(), failure(Reason.UNKNOWN), tight) or "")


def test_a_gpu_of_unknown_memory_is_not_called_small() -> None:
    nameless = finding("context_batch_size", "above", 16.0, ("",))
    assert "less than 40 GB" not in (suggest(knowledge(), failure(Reason.OOM), nameless) or "")


def test_a_finding_always_has_something_to_say_and_the_unknown_may_have_nothing() -> None:
    for kind, value in (("above", 3.0), ("at most", 3.0), ("is", "x")):
        assert suggest(knowledge(), failure(), finding("fps", kind, value))
    assert suggest(knowledge(), failure()) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- when: {parameter: colour, range: is}\n  say: x", "colour"),
        ("- when: {reason: BAD_LUCK}\n  say: x", "reason"),
        ("- when: {}\n  say: 'ask {nobody}'", "nobody"),
        ("- when: {}\n  say: x\n  than: y", "than"),
        ("when: {}", "list"),
        ("- {", "YAML"),
    ],
)
def test_a_wrong_list_is_refused_with_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(text)
