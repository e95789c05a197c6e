"""The longest prefix of the density order that fits a budget, and the units that still fit after it.

The order is never sorted whole. Some of the densities serve as thresholds: a bisection over them counts the blocks
above each. Only blocks between the last threshold that fits and the next are sorted.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from apt_ds.pruning.ranking import Ranking

THRESHOLDS = 512  # of all densities
NEAR = 8  # thresholds on both sides of the last that fits, between which sites are sorted


@dataclass(frozen=True)
class Counts:
    """What the sites of a model may keep. The last site is the hidden dimensions.

    Attributes:
        full: blocks of each site, int64 [sites].
        most: the most blocks that may remain, int64 [sites].
        unit: blocks that are kept or removed together, int64 [sites].
        least: the fewest blocks that remain where blocks may be removed, int64 [sites].
        free: whether blocks may be removed, bool [sites].
        params_per_hidden: parameters of one block per hidden dimension, int64 [sites - 1].
    """

    full: np.ndarray
    most: np.ndarray
    unit: np.ndarray
    least: np.ndarray
    free: np.ndarray
    params_per_hidden: np.ndarray

    def price(self, counts: np.ndarray) -> int:
        """Parameters of a model that keeps `counts` blocks, as `Anatomy.num_parameters`."""
        return int(counts[-1]) * int(self.params_per_hidden @ counts[:-1])

    def rounded(self, counts: np.ndarray) -> np.ndarray:
        """Counts rounded down to permitted ones. Monotone."""
        units = np.maximum(self.least, counts // self.unit * self.unit)
        return np.where(self.free & (counts < self.most), np.minimum(self.most, units), self.most)


class DensityOrder:
    """The blocks of all sites by descending density, ties by their number.

    Attributes:
        density: salience per parameter, site after site, float64 [blocks].
        counts: what the sites may keep.
        thresholds: some densities, largest first.
    """

    def __init__(self, density: np.ndarray, counts: Counts) -> None:
        self.density, self.counts = density, counts
        self.ends = np.cumsum(counts.full)
        self.spans = [
            slice(end - size, end) for end, size in zip(self.ends.tolist(), counts.full.tolist(), strict=True)
        ]
        self.thresholds = np.unique(density[:: max(1, len(density) // THRESHOLDS)])[::-1]
        self._mask = np.empty(len(density), dtype=bool)

    def above(self, number: int) -> np.ndarray:
        """Blocks of each site above a threshold, int64 [sites]. None is above threshold -1, all are above the last."""
        if number < 0:
            return np.zeros(len(self.spans), dtype=np.int64)
        if number >= len(self.thresholds):
            return self.counts.full
        np.greater(self.density, self.thresholds[number], out=self._mask)
        return np.array([np.count_nonzero(self._mask[span]) for span in self.spans])

    def between(self, high: int, low: int) -> np.ndarray:
        """Blocks above threshold `low` and not above threshold `high`, ascending, int64 [n]."""
        mask = self._mask
        mask[:] = True
        if high >= 0:
            mask &= ~(self.density > self.thresholds[high])
        if low < len(self.thresholds):
            mask &= self.density > self.thresholds[low]
        return np.flatnonzero(mask)

    def longest_prefix(self, budget: float, sites: list[Ranking]) -> np.ndarray:
        """Permitted counts of the longest prefix that fits, int64 [sites]. The sites get sorted near these counts."""

        def fits(numbers: np.ndarray) -> bool:
            return self.counts.price(self.counts.rounded(numbers)) <= budget

        number = _most(lambda i: fits(self.above(i)), 0, len(self.thresholds) - 1)
        self._sort_near(number, sites)
        kept, blocks = self.above(number), self.between(number, number + 1)
        order = blocks[np.argsort(-self.density[blocks], kind="stable")]
        site_of = np.searchsorted(self.ends, order, side="right")

        def with_first(count: int) -> np.ndarray:
            return kept + np.bincount(site_of[:count], minlength=len(self.spans))

        return self.counts.rounded(with_first(_most(lambda count: fits(with_first(count)), 1, len(order))))

    def _sort_near(self, number: int, sites: list[Ranking]) -> None:
        """Sort the values of all sites near a threshold."""
        high, low = max(-1, number - NEAR), min(len(self.thresholds), number + NEAR)
        above, blocks = self.above(high), self.between(high, low)
        edges = np.searchsorted(blocks, [span.start for span in self.spans] + [len(self.density)])
        for i, site in enumerate(sites):
            site.know(int(above[i]), site.values[blocks[edges[i] : edges[i + 1]] - self.spans[i].start])


def _most(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest number from `low` to `high` that fits, `low` - 1 if none does. Smaller numbers fit too."""
    while low <= high:
        middle = (low + high) // 2
        if fits(middle):
            low = middle + 1
        else:
            high = middle - 1
    return high


def filled(now: np.ndarray, sites: list[Ranking], prices: np.ndarray, counts: Counts, budget: float) -> np.ndarray:
    """Add units that still fit, densest first.

    Args:
        now: counts that fit, int64 [sites].
        sites: salience of the blocks of each site.
        prices: parameters of one block of each site, float64 [sites].
        counts: what sites may keep.
        budget: parameters.
    """
    kept, width = now.tolist(), int(counts.params_per_hidden @ now[:-1])
    most, units, params_per_hidden = counts.most.tolist(), counts.unit.tolist(), [*counts.params_per_hidden.tolist(), 0]

    def step(i: int) -> int:
        return int(min(units[i], most[i] - kept[i]))

    def fits(i: int) -> bool:
        if i == len(kept) - 1:
            return (kept[i] + step(i)) * width <= budget
        return kept[-1] * (width + params_per_hidden[i] * step(i)) <= budget

    def entry(i: int) -> tuple[float, int]:
        unit = sites[i].between(kept[i], kept[i] + step(i))
        return -float((unit.astype(np.float64) / prices[i]).mean()), i

    # a unit that does not fit now never does
    queue = [entry(i) for i in range(len(kept)) if step(i) and fits(i)]
    heapq.heapify(queue)
    while queue:
        _, i = heapq.heappop(queue)
        if fits(i):
            width, kept[i] = width + params_per_hidden[i] * step(i), kept[i] + step(i)
            if step(i):
                heapq.heappush(queue, entry(i))
    return np.array(kept)
