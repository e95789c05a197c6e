"""The order of examples of several sources, each in proportion to its weight.

A pattern of `PERIOD` places says which source each place takes. The pattern repeats. At no place does the number of
examples of a source differ by one or more from its share of the places so far (Tijdeman, "The chairman assignment
problem", 1980). So the examples of any step are found without those of the steps before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from apt_ds.data.sources import apportion

PERIOD = 10_000  # shares of sources are multiples of 1 / PERIOD


class Pattern(NamedTuple):
    """Which source each place of the pattern takes.

    Attributes:
        source: the source of each place, int64 [PERIOD].
        earlier: places before each place with the same source, int64 [PERIOD].
        quotas: places of each source.
    """

    source: np.ndarray
    earlier: np.ndarray
    quotas: tuple[int, ...]


@lru_cache(maxsize=4)
def pattern(weights: tuple[float, ...]) -> Pattern:
    """The pattern of sources with these weights. Each source has at least one place."""
    quotas = [1 + count for count in apportion(PERIOD - len(weights), _above_one(weights))]
    counts = [0] * len(quotas)
    source, earlier = np.empty(PERIOD, np.int64), np.empty(PERIOD, np.int64)
    margin = 2 * len(quotas) - 2
    for place in range(PERIOD):
        # sources that would lag by 1 / margin without this place. The earliest deadline comes first
        lagging = [i for i, q in enumerate(quotas) if margin * (q * (place + 1) - counts[i] * PERIOD) >= PERIOD]
        chosen = min(lagging, key=lambda i: ((counts[i] + 1) * margin - 1) / quotas[i]) if margin else 0
        source[place], earlier[place] = chosen, counts[chosen]
        counts[chosen] += 1
    return Pattern(source, earlier, tuple(quotas))


def _above_one(weights: tuple[float, ...]) -> list[float]:
    """What each source's exact quota has above one place."""
    total = sum(weights)
    return [max(PERIOD * weight / total - 1, 0.0) for weight in weights]


@lru_cache(maxsize=64)
def _permutation(n: int, seed: int, source: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, source, epoch, n]).permutation(n)


@dataclass(frozen=True)
class MixtureOrder:
    """Which rows of several sources each optimizer step sees, as a pure function of seed and step.

    The sources' rows have the indices of `rows.Joined`. Each pass over a source is a permutation of its own. A source
    with a large weight begins its next pass while others are in their first.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    global_batch: int
    seed: int = 0

    def __post_init__(self) -> None:
        assert len(self.sizes) == len(self.weights) and min(self.sizes) > 0 and min(self.weights) > 0
        assert self.global_batch > 0 and self.seed >= 0

    @property
    def n(self) -> int:
        """Rows of all sources."""
        return sum(self.sizes)

    def indices(self, step: int) -> list[int]:
        """The `global_batch` row indices of optimizer step `step`, counted from 0."""
        source, earlier, quotas = pattern(self.weights)
        offsets = [0, *np.cumsum(self.sizes).tolist()]
        indices = []
        for place in range(step * self.global_batch, (step + 1) * self.global_batch):
            period, within = divmod(place, PERIOD)
            number = int(source[within])
            epoch, offset = divmod(period * quotas[number] + int(earlier[within]), self.sizes[number])
            row = _permutation(self.sizes[number], self.seed, number, epoch)[offset]
            indices.append(offsets[number] + int(row))
        return indices

    def steps(self, epochs: float) -> int:
        """Optimizer steps that see `epochs` times as many rows as all sources have together, rounded up."""
        return math.ceil(epochs * self.n / self.global_batch)

    def seen(self, steps: int) -> list[int]:
        """Examples of each source in the first `steps` optimizer steps."""
        return counts_in(self.weights, steps * self.global_batch)


def counts_in(weights: tuple[float, ...], places: int) -> list[int]:
    """How many of the first `places` places each source takes."""
    periods, within = divmod(places, PERIOD)
    source, _, quotas = pattern(weights)
    partial = np.bincount(source[:within], minlength=len(quotas)).tolist()
    return [periods * quota + more for quota, more in zip(quotas, partial, strict=True)]


def shares_of(weights: Sequence[float]) -> list[float]:
    """The shares that a mixture really has: multiples of 1 / PERIOD."""
    return [quota / PERIOD for quota in pattern(tuple(weights)).quotas]
