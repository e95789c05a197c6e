"""The best triple of levels is that of the whole grid."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from apt_ds.models.writable_sizes import EVERY_SIZE, Writable
from apt_ds.pruning.triple_search import Choices, TripleSearch

EVEN = Writable(lambda heads, neurons, hidden: (heads + neurons) % 2 == 0, "heads + neurons")
NOTHING = Writable(lambda heads, neurons, hidden: heads < 0, "nothing")


def choices(levels: int, params_per_hidden: int, seed: int) -> Choices:
    """Counts 1, 2, ... whose gain rises to one peak."""
    gains = np.sort(np.random.default_rng(seed).normal(1.0, 1.0, levels))[::-1]
    return Choices(np.arange(1, levels + 1), np.cumsum(gains), params_per_hidden)


def find(budget: float, writable: Writable, slack: float = 0.01) -> tuple[tuple[int, int, int] | None, list[Choices]]:
    own = [choices(4, 3, 1), choices(40, 2, 2), choices(9, 1, 3)]
    return TripleSearch(*own, budget, writable, slack).find(), own


@pytest.mark.parametrize("writable", [EVERY_SIZE, EVEN], ids=["every", "even"])
@pytest.mark.parametrize("budget", [60, 200, 411, 700])
def test_no_triple_of_the_whole_grid_is_better(budget: float, writable: Writable) -> None:
    best, (heads, neurons, hidden) = find(budget, writable)
    grid: dict[tuple[int, int, int], tuple[bool, float]] = {}
    for levels in itertools.product(range(4), range(40), range(9)):
        h, n, d = (own.counts[level] for own, level in zip((heads, neurons, hidden), levels, strict=True))
        price = (h * heads.params_per_hidden + n * neurons.params_per_hidden) * d
        if price <= budget and writable.accepts(h, n, d):
            gain = sum(own.gain[level] for own, level in zip((heads, neurons, hidden), levels, strict=True))
            grid[levels] = (price >= 0.99 * budget, gain)
    assert best is not None and grid[best][0] and grid[best] == pytest.approx(max(grid.values()))


def test_without_a_triple_that_can_be_written_there_is_none() -> None:
    assert find(200, NOTHING)[0] is None


def test_a_budget_that_no_triple_uses_up_takes_the_highest_price() -> None:
    best, (heads, neurons, hidden) = find(5.9, EVERY_SIZE, slack=0.0)
    # the cheapest triple of all
    assert best == (0, 0, 0) and (heads.params_per_hidden + neurons.params_per_hidden) * hidden.counts[0] == 5
