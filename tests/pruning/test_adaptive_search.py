"""The adaptive search decides as the whole density order does."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from apt_ds.models.blocks import Anatomy, Sizes, block_slices
from apt_ds.pruning.adaptive_search import Counts, DensityOrder
from apt_ds.pruning.budget_search import rankings, search
from apt_ds.pruning.limits import Rules
from tests.support import drawn_scores, search_reference

KINDS = (("heads", "neurons", "hidden"), ("heads", "neurons"), ("neurons",), ("hidden",))


def check(table: Anatomy, name: str, rules: Rules, kept: float) -> None:
    budget = kept * table.num_parameters(table.sizes)
    values = drawn_scores.scores(name, table, seed=round(100 * kept))
    expected = search_reference.search(values, table, rules, budget)
    assert np.array_equal(search(values, table, rules, budget), expected), (name, rules, kept)


@pytest.mark.parametrize("name", drawn_scores.SCORES)
@pytest.mark.parametrize("neurons", [90, 3000])
def test_equals_the_whole_order(name: str, neurons: int) -> None:
    table = drawn_scores.anatomy(neurons)
    for kinds, (align, hidden), kept in itertools.product(KINDS, ((1, 1), (8, 4)), (0.97, 0.7, 0.5)):
        check(table, name, Rules(kinds, "adaptive", align, hidden), kept)


@pytest.mark.parametrize("name", drawn_scores.SCORES)
def test_equals_the_whole_order_where_sites_differ(name: str) -> None:
    """As after earlier cuts."""
    table = drawn_scores.anatomy(neurons=3000)
    table = table.with_sizes(Sizes((1, 3000, 3, 40, 4, 1500), 20))
    for align, kept in itertools.product((1, 8), (0.9, 0.6)):
        check(table, name, Rules(KINDS[0], "adaptive", align, align), kept)


@pytest.mark.parametrize("name", ["continuous", "few values", "mostly zero"])
def test_equals_the_whole_order_where_sublayers_may_lose_all_blocks(name: str) -> None:
    table = drawn_scores.anatomy(neurons=3000)
    emptied = table.with_sizes(Sizes((0, 3000, 3, 0, 4, 1500), 20))
    for sizes, align, kept in itertools.product((table, emptied), (1, 8), (0.9, 0.5, 0.2)):
        check(sizes, name, Rules(KINDS[1], "adaptive", align, empty=True), kept)


def test_units_of_very_different_prices_fill_the_budget() -> None:
    """After a unit of hidden dimensions that does not fit, many units of neurons do."""
    table = drawn_scores.anatomy(neurons=3000, hidden=64)
    for kept in np.linspace(0.3, 0.95, 27).tolist():
        check(table, "continuous", Rules(KINDS[0], "adaptive", 8, 16), kept)


def counts_of(table: Anatomy) -> Counts:
    full = np.array([*table.sizes.counts, table.sizes.hidden])
    params_per_hidden = np.array([site.params_per_hidden for site in table.sites])
    ones = np.ones_like(full)
    return Counts(full, full, unit=ones, least=ones, free=ones.astype(bool), params_per_hidden=params_per_hidden)


def test_prices_are_those_of_the_anatomy() -> None:
    table = drawn_scores.anatomy(neurons=90)
    counts = np.array([2, 40, 1, 7, 4, 90, 13])
    assert counts_of(table).price(counts) == table.num_parameters(Sizes(tuple(counts[:-1].tolist()), 13))


def test_a_prefix_leaves_sites_sorted_near_its_end() -> None:
    table = drawn_scores.anatomy(neurons=12_000)
    values = drawn_scores.scores("single precision", table, 0)
    sites, density = rankings(values, table), values / table.params_per_block(table.sizes)
    prefix = DensityOrder(density, counts_of(table)).longest_prefix(0.7 * table.num_parameters(table.sizes), sites)
    for count, site, (number, _) in zip(prefix.tolist(), sites, block_slices(table.sizes), strict=True):
        if table.kind(number) == "neuron":
            known = site._known
            assert 0 < len(known) < 2_000
            assert site.between(count - 1, count)[0] in known and site._known is known
