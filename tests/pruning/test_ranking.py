"""A ranking gives what a whole sort gives, whatever it sorts."""

from __future__ import annotations

import numpy as np
import pytest

from apt_ds.pruning.ranking import SMALL, Ranking

SIZES = (1, 7, SMALL, SMALL + 1, 5000)


def drawn(name: str, size: int) -> np.ndarray:
    generator = np.random.default_rng(size)
    values = {
        "float64": generator.lognormal(size=size),
        "float32": generator.lognormal(size=size).astype(np.float32),
        "ties": generator.integers(0, 4, size).astype(np.float64),
        "sorted": np.arange(size, dtype=np.float64),
        # the sample sees every 16th value, all of them large
        "misleading": np.where(np.arange(size) % 16 == 0, 1e6, 1.0) + generator.random(size),
        "nan": np.where(generator.random(size) < 0.3, np.nan, generator.random(size)),
        "infinite": np.where(generator.random(size) < 0.3, np.inf, generator.random(size)),
    }
    return values[name]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["float64", "float32", "ties", "sorted", "misleading", "nan", "infinite"])
def test_equals_a_whole_sort(name: str, size: int) -> None:
    values = drawn(name, size)
    order = np.argsort(-values, kind="stable")
    generator = np.random.default_rng(1)
    for number in range(12):
        ranking = Ranking(values)
        for _ in range(3):
            first, last = sorted(generator.integers(0, size + 1, 2).tolist())
            last = min(last, first + 100) if number % 2 else last
            assert np.array_equal(ranking.between(first, last), values[order[first:last]], equal_nan=True)
            for asked in (ranking, Ranking(values)):
                assert np.array_equal(np.flatnonzero(asked.best(last)), np.sort(order[:last]))


def test_only_values_near_the_ranks_are_sorted() -> None:
    values = np.random.default_rng(0).random(20_000)
    ranking = Ranking(values)
    ranking.between(12_000, 12_064)
    assert 64 <= len(ranking._known) < 2_500


def test_values_that_the_caller_found_are_used() -> None:
    values = np.arange(5000.0)
    ranking = Ranking(values)
    ranking.know(10, np.array([4988.0, 4989.0, 4987.0]))
    known = ranking._known
    assert ranking.between(10, 13).tolist() == [4989.0, 4988.0, 4987.0] and ranking._known is known
    assert ranking.between(9, 11).tolist() == [4990.0, 4989.0]
