"""Whether a master is still the one: every mix of what three Sentinels may say."""

from __future__ import annotations

import pytest

from appliance.errors import QueueUnavailable
from appliance.sentinels import Sentinels, View
from appliance.settings import Address

OURS, OTHER = Address("10.0.0.1", 6379), Address("10.0.0.2", 6379)
STANDS = View(4, OURS, in_doubt=False)
DOUBTS = View(4, OURS, in_doubt=True)
LATER = View(5, OTHER, in_doubt=False)
EARLIER = View(3, OTHER, in_doubt=False)
SPLIT = View(4, OTHER, in_doubt=False)


async def confirmed(monkeypatch: pytest.MonkeyPatch, *views: View) -> bool:
    def nobody(address: Address) -> None:
        raise AssertionError(address)

    sentinels = Sentinels([Address("10.0.0.9", port) for port in (1, 2, 3)], "queue", nobody)  # type: ignore[arg-type]

    async def survey() -> list[View]:
        return list(views)

    monkeypatch.setattr(sentinels, "_survey", survey)
    try:
        await sentinels.confirm(OURS)
    except QueueUnavailable:
        return False
    return True


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        ((STANDS, STANDS, STANDS), True),
        ((STANDS, STANDS), True),
        ((STANDS, STANDS, EARLIER), True),  # cut off before the last failover
        ((STANDS, EARLIER), False),
        ((STANDS,), False),
        ((), False),
        ((STANDS, STANDS, DOUBTS), False),
        ((STANDS, STANDS, LATER), False),
        ((STANDS, STANDS, SPLIT), False),
        ((STANDS, LATER, LATER), False),
        ((EARLIER, EARLIER, EARLIER), False),
    ],
)
async def test_a_master_is_confirmed_by_most_and_doubted_by_none(
    monkeypatch: pytest.MonkeyPatch, views: tuple[View, ...], expected: bool
) -> None:
    assert await confirmed(monkeypatch, *views) is expected
