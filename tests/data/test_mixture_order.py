"""The order of several sources: in proportion at every place, each pass over a source whole."""

from __future__ import annotations

import random

import numpy as np
import pytest

from apt_ds.data.mixture_order import PERIOD, MixtureOrder, pattern, shares_of

WEIGHTS = [(0.7, 0.3), (1.0, 1.0, 1.0), (5.0, 3.0, 2.0, 1e-9), (2.0,), (0.4, 0.3, 0.1, 0.1, 0.05, 0.05)]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_no_source_is_ever_ahead_or_behind_by_an_example(weights: tuple[float, ...]) -> None:
    source, earlier, quotas = pattern(weights)
    taken = np.eye(len(weights))[source].cumsum(axis=0)
    share = np.arange(1, PERIOD + 1)[:, None] * np.array(quotas) / PERIOD
    assert np.abs(taken - share).max() < 1
    assert (taken[np.arange(PERIOD), source] == earlier + 1).all()
    exact = np.array(weights) / sum(weights)
    assert sum(quotas) == PERIOD and min(quotas) > 0
    assert np.abs(shares_of(weights) - exact).max() <= len(weights) / PERIOD


def test_weights_of_four_digits_are_exact() -> None:
    assert shares_of((0.7123, 0.2877)) == [0.7123, 0.2877] and shares_of((3, 1)) == [0.75, 0.25]


def test_each_pass_over_a_source_sees_every_row_once() -> None:
    sizes = (7, 40, 3)
    order = MixtureOrder(sizes, (0.5, 0.3, 0.2), 11, seed=4)
    drawn = [index for step in range(3000) for index in order.indices(step)]
    assert len(drawn) > 3 * PERIOD
    start = 0
    for size in sizes:
        own = [index - start for index in drawn if start <= index < start + size]
        passes = [own[i : i + size] for i in range(0, len(own) - size + 1, size)]
        assert all(sorted(each) == list(range(size)) for each in passes)
        assert len({tuple(each) for each in passes}) > 1
        start += size


def test_any_step_is_known_without_those_before() -> None:
    order = MixtureOrder((30, 50), (0.7, 0.3), 12, seed=1)
    straight = [order.indices(step) for step in range(60)]
    steps = list(range(60))
    random.Random(0).shuffle(steps)
    assert all(MixtureOrder((30, 50), (0.7, 0.3), 12, seed=1).indices(step) == straight[step] for step in steps)
    # a batch of another size has the same examples in the same order
    flat = [index for step in straight for index in step]
    assert [i for step in range(30) for i in MixtureOrder((30, 50), (0.7, 0.3), 24, seed=1).indices(step)] == flat
    assert MixtureOrder((30, 50), (0.7, 0.3), 12, seed=2).indices(0) != straight[0]


def test_what_was_seen_is_counted() -> None:
    order = MixtureOrder((30, 50), (0.7, 0.3), 12, seed=1)
    for steps in (0, 1, 17, 2 * PERIOD // 12):
        drawn = np.array([index for step in range(steps) for index in order.indices(step)], int)
        assert order.seen(steps) == [int((drawn < 30).sum()), int((drawn >= 30).sum())]
    # an epoch is as many examples as all sources have rows
    assert order.steps(1.0) == 7 and order.steps(3) == 20
