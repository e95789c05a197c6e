"""The best numbers of heads, neurons and hidden dimensions where all sites of a kind keep the same number.

`triple_search.py` finds the best triple of numbers from what each number gains. This module sums up these gains, and
sorts large sites only near the numbers that decide.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from apt_ds.models.writable_sizes import KINDS, Writable
from apt_ds.pruning.limits import SLACK
from apt_ds.pruning.ranking import SMALL, Ranking
from apt_ds.pruning.triple_search import Choices, TripleSearch

SPREAD = 1 / 32  # of a site's neurons: how many are sorted on both sides of the estimated count, at first


def uniform_counts(
    sites: dict[str, list[Ranking]],
    counts: dict[str, np.ndarray],
    params_per_hidden: dict[str, int],
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
        params_per_hidden: as in `Choices`, by kind.
        budget: parameters.
        writable: the sizes that can be written.
        slack: as in `TripleSearch`, of the budget.
    """

    def find(gain: np.ndarray) -> tuple[int, int, int] | None:
        head_choices = Choices(counts["head"], head_gain, params_per_hidden["head"])
        hidden_choices = Choices(counts["hidden"], hidden_gain, params_per_hidden["hidden"])
        neuron_choices = Choices(counts["neuron"], gain, params_per_hidden["neuron"])
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
    params_per_hidden: dict[str, int],
    budget: float,
    writable: Writable,
    slack: float = SLACK,
) -> list[dict[str, int]]:
    """Blocks of each kind that every site keeps, of all triples of `TripleSearch.frontier`. Sorts all sites.

    The arguments are those of `uniform_counts`.
    """
    heads, neurons, hidden = (
        Choices(counts[kind], total_gain(sites[kind], counts[kind]), params_per_hidden[kind]) for kind in KINDS
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
