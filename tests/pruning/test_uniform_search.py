"""The uniform search decides as the whole grid does."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

from apt_ds.config.errors import UserError
from apt_ds.models.blocks import Anatomy
from apt_ds.models.writable_sizes import EVERY_SIZE, Writable
from apt_ds.pruning.budget_search import best_of_each, search, uniform_frontier
from apt_ds.pruning.limits import Rules
from tests.support import drawn_scores, search_reference

DIVISIBLE = Writable(lambda heads, neurons, hidden: (hidden % heads == 0) & (neurons > 0), "hidden % heads")
# depends on all three, and leaves few triples
RARE = Writable(lambda heads, neurons, hidden: (heads + neurons + hidden) % 29 == 3, "rare")
KINDS = (("heads", "neurons", "hidden"), ("heads", "neurons"), ("neurons",), ("heads", "hidden"), ("hidden",))


def check(table: Anatomy, name: str, rules: Rules, kept: float) -> None:
    budget = kept * table.num_parameters(table.sizes)
    values = drawn_scores.scores(name, table, seed=round(100 * kept))
    try:
        expected = search_reference.search(values, table, rules, budget)
    except UserError as error:
        with pytest.raises(UserError) as raised:
            search(values, table, rules, budget)
        assert str(raised.value) == str(error)
        return
    assert np.array_equal(search(values, table, rules, budget), expected), (name, rules, kept)


@pytest.mark.parametrize("writable", [EVERY_SIZE, DIVISIBLE, RARE], ids=["every", "divisible", "rare"])
@pytest.mark.parametrize("name", drawn_scores.SCORES)
def test_equals_the_whole_grid(name: str, writable: Writable) -> None:
    """Sites that are sorted whole."""
    table = drawn_scores.anatomy(neurons=90)
    for kinds, (align, hidden), kept in itertools.product(KINDS, ((1, 1), (8, 4), (64, 16)), (0.97, 0.71, 0.3)):
        check(table, name, Rules(kinds, "uniform", align, hidden, writable), kept)


@pytest.mark.parametrize("writable", [EVERY_SIZE, DIVISIBLE], ids=["every", "divisible"])
@pytest.mark.parametrize("name", drawn_scores.SCORES)
def test_equals_the_whole_grid_where_sites_are_sorted_in_part(name: str, writable: Writable) -> None:
    table = drawn_scores.anatomy(neurons=3000, hidden=16)
    for kinds, align, kept in itertools.product(KINDS[:3], (1, 64), (0.9, 0.6, 0.2)):
        check(table, name, Rules(kinds, "uniform", align, 1, writable), kept)


def test_large_sites_are_sorted_in_part_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the comparison above proves nothing about it."""
    table, sorted_sizes, sort = drawn_scores.anatomy(neurons=12_000, hidden=16), [], np.sort

    def counted(values: np.ndarray) -> np.ndarray:
        sorted_sizes.append(len(values))
        return sort(values)

    monkeypatch.setattr(np, "sort", counted)
    values = drawn_scores.scores("single precision", table, 0)
    search(values, table, Rules(KINDS[1], "uniform", 64), 0.7 * table.num_parameters(table.sizes))
    assert 1_000 < max(sorted_sizes) < 4_000


def test_negative_salience_is_not_kept_for_its_size() -> None:
    """A gain that falls again has its peak inside of the range that the budget leaves."""
    table = drawn_scores.anatomy(neurons=90)
    values = np.random.default_rng(0).normal(size=table.sizes.total()) - 0.5
    for kept in (0.9, 0.5):
        budget = kept * table.num_parameters(table.sizes)
        rules = Rules(KINDS[0], "uniform")
        expected = search_reference.search(values, table, rules, budget)
        assert np.array_equal(search(values, table, rules, budget), expected)


def test_the_grid_is_never_stored() -> None:
    """One entry of every triple would be 12 MB."""
    table = drawn_scores.anatomy(neurons=6000, heads=8, hidden=256)
    values = drawn_scores.scores("single precision", table, 0)
    tracemalloc.start()
    try:
        search(values, table, Rules(KINDS[0], "uniform"), 0.7 * table.num_parameters(table.sizes))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("writable", [EVERY_SIZE, RARE], ids=["every", "rare"])
def test_the_frontier_has_the_largest_triple_of_every_pair(writable: Writable) -> None:
    table = drawn_scores.anatomy(neurons=40)
    values, budget = drawn_scores.scores("continuous", table, 3), 0.6 * table.num_parameters(table.sizes)
    rules = Rules(KINDS[0], "uniform", 2, 4, writable, slack=0.05)
    expected: dict[tuple[int, int], int] = {}
    levels = [rules.levels(kind, count) for kind, count in (("head", 4), ("neuron", 40), ("hidden", 32))]
    sizes = {kind: [site.params_per_hidden for site in table.sites if site.kind == kind] for kind in ("head", "neuron")}
    for heads, neurons, hidden in itertools.product(*levels):
        price = hidden * (heads * sum(sizes["head"]) + neurons * sum(sizes["neuron"]))
        if 0.95 * budget <= price <= budget and writable.accepts(*map(np.array, (heads, neurons, hidden))):
            expected[heads, hidden] = max(neurons, expected.get((heads, hidden), 0))
    frontier = uniform_frontier(values, table, rules, budget)
    kinds = [site.kind for site in table.sites]
    triples = {(one.counts[kinds.index("head")], one.hidden): one.counts[kinds.index("neuron")] for one in frontier}
    assert triples == expected and len(frontier) == len(expected) > (3 if writable is EVERY_SIZE else 0)
    kept = [values[best_of_each(values, table, one)].sum() for one in frontier]
    assert kept == sorted(kept, reverse=True)
