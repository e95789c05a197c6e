"""The best of all triples of levels under a budget: numbers of heads, neurons and hidden dimensions.

The triples are a grid of three levels. For each pair of heads and hidden dimensions, the budget leaves a range of
neurons. The gain of neurons rises to one peak, so that the best of a range is known without a look at the others.
Nothing of the size of the grid is stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from apt_ds.models.writable_sizes import Writable
from apt_ds.pruning.limits import SLACK

ELEMENTS = 1 << 18  # triples that are looked at together


@dataclass(frozen=True)
class Choices:
    """The numbers of blocks of one kind that every site may keep.

    Attributes:
        counts: ascending, int64 [levels].
        gain: salience that all sites keep together, float64 [levels]. It rises to one peak, then falls.
        params_per_hidden: parameters of one block at every site, per hidden dimension. 1 for hidden dimensions.
    """

    counts: np.ndarray
    gain: np.ndarray
    params_per_hidden: int = 1


def divided_up(dividend: int | np.ndarray, divisor: int | np.ndarray) -> np.ndarray:
    """The quotient of integers, rounded up."""
    return np.asarray(-(-dividend // divisor))


class TripleSearch:
    """The search for one triple of levels under a budget.

    Of all triples that fit and can be written, those that use the budget up to `slack` come first. Without such a
    triple, those of the highest price. The triple that keeps most salience wins, the first among equals in the order
    of (heads, neurons, hidden).
    """

    def __init__(
        self,
        heads: Choices,
        neurons: Choices,
        hidden: Choices,
        budget: float,
        writable: Writable,
        slack: float = SLACK,
    ) -> None:
        self.heads, self.neurons, self.hidden = heads, neurons, hidden
        self.budget, self.writable = budget, writable
        # prices are integers
        self.largest_price, self.smallest_price = math.floor(budget), math.ceil((1 - slack) * budget)

    def find(self) -> tuple[int, int, int] | None:
        """Levels of heads, neurons and hidden dimensions. None: no triple fits and can be written."""
        first, last = self._ranges()
        peak = int(np.argmax(self.neurons.gain))
        heads, hidden = np.arange(first.shape[0])[:, None], np.arange(first.shape[1])[None, :]
        value = self._values(heads, hidden, np.clip(peak, first, np.maximum(first, last)))
        value[first > last] = -np.inf
        best = self._best_value(value, first, last)
        return self._most_expensive() if best is None else self._first_of(best, value, first, last)

    def frontier(self) -> list[tuple[int, int, int]]:
        """For each pair of heads and hidden dimensions the most neurons that fit and can be written.

        Triples that keep most salience come first. Pairs without a triple that uses the budget up to `slack` are left
        out.
        """
        first, last = self._ranges()
        triples: list[tuple[float, tuple[int, int, int]]] = []
        for head, hidden in np.argwhere(first <= last).tolist():
            levels = np.arange(first[head, hidden], last[head, hidden] + 1)
            accepted = levels[self._accepts(np.array(head), levels, np.array(hidden))]
            if len(accepted):
                triple = head, int(accepted[-1]), hidden
                triples.append((-float(self._values(*map(np.array, (head, hidden, triple[1])))), triple))
        return [triple for _, triple in sorted(triples)]

    def _ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """The first and the last level of neurons that use the budget up to `slack`, int64 [heads, hidden] each."""
        others = self.heads.counts[:, None] * self.heads.params_per_hidden
        hidden, params = self.hidden.counts[None, :], self.neurons.params_per_hidden
        most = (self.largest_price // hidden - others) // params
        least = divided_up(divided_up(self.smallest_price, hidden) - others, params)
        counts = self.neurons.counts
        # a budget beyond all counts needs no larger table
        return np.searchsorted(counts, least), np.searchsorted(counts, most, side="right") - 1

    def _values(self, heads: np.ndarray, hidden: np.ndarray, neurons: np.ndarray) -> np.ndarray:
        """Salience that triples of levels keep."""
        neuron_gain = self.neurons.gain[np.minimum(neurons, len(self.neurons.gain) - 1)]
        return np.asarray(self.heads.gain[heads] + neuron_gain + self.hidden.gain[hidden])

    def _accepts(self, heads: np.ndarray, neurons: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        """Whether triples of levels can be written."""
        return self.writable.accepts(self.heads.counts[heads], self.neurons.counts[neurons], self.hidden.counts[hidden])

    def _triples(self, pairs: np.ndarray, first: np.ndarray, last: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
        """All triples of some pairs that can be written: (heads, neurons, hidden) levels, a part at a time.

        Args:
            pairs: numbers of pairs in [heads, hidden], flat.
            first: first level of neurons of all pairs.
            last: last level of neurons of all pairs.
        """
        lengths = (last - first + 1).ravel()[pairs]
        parts = np.cumsum(lengths) // ELEMENTS
        for part in np.unique(parts):
            own, length = pairs[parts == part], lengths[parts == part]
            starts = np.cumsum(length) - length
            neurons = np.arange(length.sum()) + np.repeat(first.ravel()[own] - starts, length)
            heads, hidden = np.divmod(np.repeat(own, length), len(self.hidden.counts))
            accepted = self._accepts(heads, neurons, hidden)
            yield heads[accepted], neurons[accepted], hidden[accepted]

    def _best_value(self, value: np.ndarray, first: np.ndarray, last: np.ndarray) -> float | None:
        """The most salience of triples that can be written, from `value`, that of all triples. None without one."""
        flat, best, number = value.ravel(), -math.inf, 64
        total = int(np.count_nonzero(flat > -np.inf))
        while total:
            number = min(number, total)
            # pairs with most salience first: mostly one of the first can be written
            top = np.argpartition(flat, len(flat) - number)[len(flat) - number :]
            for heads, neurons, hidden in self._triples(top, first, last):
                best = max(best, float(self._values(heads, hidden, neurons).max(initial=-np.inf)))
            if best >= flat[top].min() or number == total:
                break
            number *= 16
        return best if best > -math.inf else None

    def _first_of(
        self, best: float, value: np.ndarray, first: np.ndarray, last: np.ndarray
    ) -> tuple[int, int, int] | None:
        """The first triple in the order of (heads, neurons, hidden) with the value `best`."""
        for head in np.flatnonzero((value >= best).any(axis=1)):
            pairs = np.flatnonzero(value[head] >= best) + head * len(self.hidden.counts)
            equal: list[tuple[int, int]] = []
            for heads, neurons, hidden in self._triples(pairs, first, last):
                at = np.flatnonzero(self._values(heads, hidden, neurons) == best)
                equal += [min(zip(neurons[at].tolist(), hidden[at].tolist(), strict=True))] if len(at) else []
            if equal:
                return int(head), *min(equal)
        return None

    def _most_expensive(self) -> tuple[int, int, int] | None:
        """The best triple of the highest price that fits and can be written."""
        best: tuple[float, float] = (-np.inf, -np.inf)
        triple = None
        size = max(1, ELEMENTS // len(self.hidden.counts))
        hidden = np.arange(len(self.hidden.counts))[None, :]
        for head in range(len(self.heads.counts)):
            for start in range(0, len(self.neurons.counts), size):
                neurons = np.arange(start, min(start + size, len(self.neurons.counts)))[:, None]
                width = (
                    self.heads.counts[head] * self.heads.params_per_hidden
                    + self.neurons.counts[neurons] * self.neurons.params_per_hidden
                )
                price = width * self.hidden.counts[hidden]
                price = np.where((price <= self.budget) & self._accepts(np.array(head), neurons, hidden), price, -1)
                if price.max() < 0:
                    continue
                value = np.where(price == price.max(), self._values(np.array(head), hidden, neurons), -np.inf)
                row, column = divmod(int(np.argmax(value)), len(self.hidden.counts))
                if (price.max(), value.max()) > best:
                    best = (price.max(), value.max())
                    triple = (head, start + row, column)
        return triple
