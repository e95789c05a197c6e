"""The best numbers of heads, neurons and hidden dimensions where all sites of a kind keep the same number.

The triples are a grid of three levels. For each pair of heads and hidden dimensions, the budget leaves a range of
neurons. The gain of neurons rises to one peak, so that the best of a range is known without a look at the others.
Nothing of the size of the grid is stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from apt_ds.models.writable_sizes import KINDS, Writable
from apt_ds.pruning.ranking import SMALL, Ranking

SLACK = 0.01  # of the budget: how far below it a plan may end where alignment permits better
ELEMENTS = 1 << 18  # triples that are looked at together
SPREAD = 1 / 32  # of a site's neurons: how many are sorted on both sides of the estimated count, at first


@dataclass(frozen=True)
class Choices:
    """The numbers of blocks of one kind that every site may keep.

    Attributes:
        counts: ascending, int64 [levels].
        gain: salience that all sites keep together, float64 [levels]. It rises to one peak, then falls.
        weight: parameters of one block at every site, per hidden dimension. 1 for hidden dimensions.
    """

    counts: np.ndarray
    gain: np.ndarray
    weight: int = 1


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
        self.most, self.least = math.floor(budget), math.ceil((1 - slack) * budget)

    def find(self) -> tuple[int, int, int] | None:
        """Levels of heads, neurons and hidden dimensions. None: no triple fits and can be written."""
        first, last = self._ranges()
        peak = int(np.argmax(self.neurons.gain))
        heads, hidden = np.arange(first.shape[0])[:, None], np.arange(first.shape[1])[None, :]
        value = self._values(heads, hidden, np.clip(peak, first, np.maximum(first, last)))
        value[first > last] = -np.inf
        best = self._best_value(value, first, last)
        return self._dearest() if best is None else self._first_of(best, value, first, last)

    def frontier(self) -> list[tuple[int, int, int]]:
        """For each pair of heads and hidden dimensions the most neurons that fit and can be written.

        Triples that keep most salience come first. Pairs without a triple that uses the budget up to `slack` are left
        out.
        """
        first, last = self._ranges()
        found: list[tuple[float, tuple[int, int, int]]] = []
        for head, hidden in np.argwhere(first <= last).tolist():
            levels = np.arange(first[head, hidden], last[head, hidden] + 1)
            accepted = levels[self._accepts(np.array(head), levels, np.array(hidden))]
            if len(accepted):
                triple = head, int(accepted[-1]), hidden
                found.append((-float(self._values(*map(np.array, (head, hidden, triple[1])))), triple))
        return [triple for _, triple in sorted(found)]

    def _ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """The first and the last level of neurons that use the budget up to `slack`, int64 [heads, hidden] each."""
        others = self.heads.counts[:, None] * self.heads.weight
        most = (self.most // self.hidden.counts[None, :] - others) // self.neurons.weight
        least = -((others - -(-self.least // self.hidden.counts[None, :])) // self.neurons.weight)
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
        flat, found, number = value.ravel(), -math.inf, 64
        total = int(np.count_nonzero(flat > -np.inf))
        while total:
            number = min(number, total)
            # pairs with most salience first: mostly one of the first can be written
            top = np.argpartition(flat, len(flat) - number)[len(flat) - number :]
            for heads, neurons, hidden in self._triples(top, first, last):
                found = max(found, float(self._values(heads, hidden, neurons).max(initial=-np.inf)))
            if found >= flat[top].min() or number == total:
                break
            number *= 16
        return found if found > -math.inf else None

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

    def _dearest(self) -> tuple[int, int, int] | None:
        """The best triple of the highest price that fits and can be written."""
        best: tuple[float, float] = (-np.inf, -np.inf)
        triple = None
        size = max(1, ELEMENTS // len(self.hidden.counts))
        hidden = np.arange(len(self.hidden.counts))[None, :]
        for head in range(len(self.heads.counts)):
            for start in range(0, len(self.neurons.counts), size):
                neurons = np.arange(start, min(start + size, len(self.neurons.counts)))[:, None]
                width = self.heads.counts[head] * self.heads.weight + self.neurons.counts[neurons] * self.neurons.weight
                price = width * self.hidden.counts[hidden]
                price = np.where((price <= self.budget) & self._accepts(np.array(head), neurons, hidden), price, -1)
                if price.max() < 0:
                    continue
                value = np.where(price == price.max(), self._values(np.array(head), hidden, neurons), -np.inf)
                number = int(np.argmax(value))
                if (price.max(), value.max()) > best:
                    best = (price.max(), value.max())
                    triple = (head, start + number // len(hidden.T), number % len(hidden.T))
        return triple


def uniform_counts(
    sites: dict[str, list[Ranking]],
    counts: dict[str, np.ndarray],
    weights: dict[str, int],
    budget: float,
    writable: Writable,
    slack: float = SLACK,
) -> dict[str, int] | None:
    """Blocks of each kind that every site keeps, see `TripleSearch`. None: no model that fits can be written.

    Large sites are sorted only near the numbers of neurons that seem best. Bounds on all other numbers prove that none
    of them is better. Where they do not, more is sorted.

    Args:
        sites: salience of the blocks of every site, by kind.
        counts: the numbers that a site may keep, ascending, int64, by kind.
        weights: as in `Choices`, by kind.
        budget: parameters.
        writable: the sizes that can be written.
        slack: as in `TripleSearch`, of the budget.
    """

    def find(gain: np.ndarray) -> tuple[int, int, int] | None:
        head_choices = Choices(counts["head"], head_gain, weights["head"])
        hidden_choices = Choices(counts["hidden"], hidden_gain, weights["hidden"])
        neuron_choices = Choices(counts["neuron"], gain, weights["neuron"])
        return TripleSearch(head_choices, neuron_choices, hidden_choices, budget, writable, slack).find()

    head_gain, hidden_gain = (total_gain(sites[kind], counts[kind]) for kind in ("head", "hidden"))
    neurons = sites["neuron"]
    if len(counts["neuron"]) == 1 or len(neurons[0].values) <= SMALL:
        levels = find(total_gain(neurons, counts["neuron"]))
    else:
        levels = _find_near(find, neurons, counts["neuron"])
    return levels and {kind: int(counts[kind][level]) for kind, level in zip(KINDS, levels, strict=True)}


def frontier(
    sites: dict[str, list[Ranking]],
    counts: dict[str, np.ndarray],
    weights: dict[str, int],
    budget: float,
    writable: Writable,
    slack: float = SLACK,
) -> list[dict[str, int]]:
    """Blocks of each kind that every site keeps, of all triples of `TripleSearch.frontier`. Sorts all sites.

    The arguments are those of `uniform_counts`.
    """
    heads, neurons, hidden = (
        Choices(counts[kind], total_gain(sites[kind], counts[kind]), weights[kind]) for kind in KINDS
    )
    triples = TripleSearch(heads, neurons, hidden, budget, writable, slack).frontier()
    return [{kind: int(counts[kind][level]) for kind, level in zip(KINDS, levels, strict=True)} for levels in triples]


def _find_near(
    find: Callable[[np.ndarray], tuple[int, int, int] | None], sites: list[Ranking], counts: np.ndarray
) -> tuple[int, int, int] | None:
    """Levels of the best triple, given how to find them from the gain of neurons. Sorts sites in part."""
    levels = find(estimated_gain(sites, counts))
    size, spread = len(sites[0].values), SPREAD
    while levels is not None and spread < 1 / 4:
        centre = counts[levels[1]]
        first = int(np.searchsorted(counts, centre - spread * size))
        last = min(int(np.searchsorted(counts, centre + spread * size)), len(counts) - 1)
        if first < last:
            levels = find(bounded_gain(sites, counts, first, last))
            if levels is None or first <= levels[1] <= last:
                return levels
        spread *= 4
    return levels and find(total_gain(sites, counts))


def total_gain(sites: list[Ranking], counts: np.ndarray) -> np.ndarray:
    """Salience that sites keep together, at each count of blocks per site: float64 [levels]."""
    return np.concatenate([[0.0], np.cumsum(totals(sites, 0, int(counts[-1])))])[counts]


def estimated_gain(sites: list[Ranking], counts: np.ndarray) -> np.ndarray:
    """An estimate of `total_gain` from samples, float64 [levels]."""
    sampled = np.stack([site.sample() for site in sites]).sum(axis=0, dtype=np.float64)
    ranks = np.arange(len(sampled) + 1) * (len(sites[0].values) / len(sampled))
    return np.interp(counts, ranks, np.concatenate([[0.0], np.cumsum(sampled)]) * ranks[1])


def bounded_gain(sites: list[Ranking], counts: np.ndarray, first: int, last: int) -> np.ndarray:
    """`total_gain` less that of level `first`: exact from `first` to `last`, an upper bound elsewhere.

    Ranks before the sorted ones have at least the first of their totals, ranks after them at most the last.
    """
    start, end = int(counts[first]), int(counts[last])
    inside = totals(sites, start, end)
    gain = np.concatenate([[0.0], np.cumsum(inside)])
    bound = np.where(counts < start, (counts - start) * inside[0], gain[-1] + (counts - end) * inside[-1])
    bound[first : last + 1] = gain[counts[first : last + 1] - start]
    return bound


def totals(sites: list[Ranking], start: int, end: int) -> np.ndarray:
    """Salience that all sites have together at each of the ranks `start` to `end` - 1, float64 [end - start]."""
    total = np.zeros(end - start)
    for site in sites:
        total += site.between(start, end)
    return total
