"""The order of many values, sorted only near the ranks that are asked for.

A strided sample gives two bounds around the ranks. Only values between the bounds are sorted. A sample that misleads
costs time. It never changes a result.
"""

from __future__ import annotations

import math

import numpy as np

SMALL = 1024  # values that are sorted whole
STRIDE = 16  # one value in this many is in the sample
DEVIATIONS = 2.5  # standard deviations of a sampled rank that the bounds leave as a margin


class Ranking:
    """Values by descending rank. The largest value has rank 0, NaN comes last.

    Attributes:
        values: float32 or float64 [n].
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self._sample: np.ndarray | None = None
        self._first, self._known = 0, values[:0]  # what is sorted so far: the values from rank `_first` on

    def sample(self) -> np.ndarray:
        """Every `STRIDE`-th value, or all of at most `SMALL`, largest first: an estimate of the sorted values."""
        if self._sample is None:
            self._sample = descending(self.values if len(self.values) <= SMALL else self.values[::STRIDE])
        return self._sample

    def between(self, first: int, last: int) -> np.ndarray:
        """The values at the ranks `first` to `last` - 1, float [last - first]."""
        if first < self._first or last > self._first + len(self._known):
            self._sort(first, last)
        return self._known[first - self._first : last - self._first]

    def know(self, first: int, values: np.ndarray) -> None:
        """Take values that the caller has found.

        Args:
            first: the rank of the largest of them.
            values: the values of this and the following ranks, in any order.
        """
        self._first, self._known = first, descending(values)

    def best(self, count: int) -> np.ndarray:
        """Which values have the first `count` ranks, bool [n]. Ties go to the lower index."""
        if count >= len(self.values):
            return np.ones(len(self.values), dtype=bool)
        worst = self.between(count - 1, count)[0] if count else math.inf
        if len(self.values) <= SMALL or np.isnan(worst):
            keep = np.zeros(len(self.values), dtype=bool)
            keep[np.argsort(-self.values, kind="stable")[:count]] = True
            return keep
        keep = self.values >= worst
        surplus = np.count_nonzero(keep) - count
        if surplus:
            keep[np.flatnonzero(self.values == worst)[-surplus:]] = False
        return keep

    def _sort(self, first: int, last: int) -> None:
        """Sort the values at these ranks, and some around them."""
        values = self.values
        if len(values) <= SMALL:
            self._first, self._known = 0, self.sample()
            return
        low, high = self._bounds(first, last)
        above = int(np.count_nonzero(values > high))
        window = values[(values >= low) & (values <= high)]
        if above <= first and above + len(window) >= last:
            self._first, self._known = above, descending(window)
        else:
            self._first, self._known = 0, descending(values)

    def _bounds(self, first: int, last: int) -> tuple[float, float]:
        """Two values between which the ranks `first` to `last` - 1 most likely are."""
        sample = self.sample()
        margin = math.ceil(DEVIATIONS * math.sqrt(len(sample)) / 2)
        upper, lower = first // STRIDE - margin, last // STRIDE + margin
        high = float(sample[upper]) if upper >= 0 else math.inf
        return float(sample[lower]) if lower < len(sample) else -math.inf, high


def descending(values: np.ndarray) -> np.ndarray:
    """A sorted copy, largest first, NaN last."""
    return -np.sort(-values)
