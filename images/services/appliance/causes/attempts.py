"""The attempts that can be compared with each other, small enough for hundreds of thousands: one place for each, under
which others remember it. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import Final, Generic, TypeVar

from appliance.causes.features import Features

T = TypeVar("T", bound="str | Features")
MOST_WORKERS: Final = 1000
MOST_GPUS: Final = 64


class Numbered(Generic[T]):
    """Different things in the order of their first appearance, at most so many."""

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._numbers: dict[T, int] = {}

    def number(self, thing: T) -> int | None:
        """None for one too many."""
        if self._most is not None and thing not in self._numbers and len(self._numbers) >= self._most:
            return None
        return self._numbers.setdefault(thing, len(self._numbers))

    def group(self, numbers: Iterable[int]) -> dict[T, list[int]]:
        """The places of each thing, where `numbers` has the thing's number for each place."""
        places: list[list[int]] = [[] for _ in self._numbers]
        for place, number in enumerate(numbers):
            places[number].append(place)
        return dict(zip(self._numbers, places, strict=True))


class Attempts:
    def __init__(self) -> None:
        self._features, self._feature_of = Numbered[Features](), array("L")
        self._workers, self._worker_of = Numbered[str](MOST_WORKERS), array("L")
        self._gpus, self._gpu_of = Numbered[str](MOST_GPUS), array("L")
        self._nobody = self._workers.number("") or 0

    def __len__(self) -> int:
        return len(self._feature_of)

    def append(self, features: Features, worker: str, gpu: str) -> int | None:
        """Its place; None where there are too many GPU models to tell apart, so that it has no equals."""
        gpu_number, features_number = self._gpus.number(gpu), self._features.number(features)
        if gpu_number is None or features_number is None:
            return None
        self._gpu_of.append(gpu_number)
        self._feature_of.append(features_number)
        worker_number = self._workers.number(worker)
        self._worker_of.append(self._nobody if worker_number is None else worker_number)
        return len(self) - 1

    def by_features(self) -> dict[Features, list[int]]:
        return self._features.group(self._feature_of)

    def by_worker(self) -> dict[str, list[int]]:
        return self._workers.group(self._worker_of)

    def strata(self) -> Mapping[str, int]:
        """Each GPU model's attempts, as bits."""
        return {gpu: mask_of(places, len(self)) for gpu, places in self._gpus.group(self._gpu_of).items()}


def mask_of(places: Iterable[int], size: int) -> int:
    """A number that has the bits of these places."""
    bits = bytearray(size // 8 + 1)
    for place in places:
        bits[place >> 3] |= 1 << (place & 7)
    return int.from_bytes(bits, "little")
