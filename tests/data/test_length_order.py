"""Steps of similar lengths: the same rows in every window, and no step depends on those before."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest

from apt_ds.data.batching import GlobalOrder
from apt_ds.data.length_order import MOST_STEPS, LengthOrder
from apt_ds.data.mixture_order import MixtureOrder

LENGTHS = np.random.default_rng(0).integers(1, 500, 2000)


@pytest.mark.parametrize("inner", [GlobalOrder(2000, 8, 3), MixtureOrder((500, 1500), (0.5, 0.5), 8, 3)])
def test_a_window_keeps_its_rows_and_steps_have_similar_lengths(inner: GlobalOrder | MixtureOrder) -> None:
    order = LengthOrder(inner, LENGTHS, seed=3, total_steps=130)
    assert order.window == MOST_STEPS and (order.n, order.global_batch) == (2000, 8)
    windows = [(0, 50), (50, 100), (100, 130), (130, 150), (150, 200)]
    for start, end in windows:
        grouped = [order.indices(step) for step in range(start, end)]
        plain = [inner.indices(step) for step in range(start, end)]
        assert sorted(chain(*grouped)) == sorted(chain(*plain))
        spread = np.mean([np.ptp(LENGTHS[step]) for step in grouped])
        # 8 of 240 to 400 sorted lengths, apart from the window of 20 steps
        assert spread < 0.12 * np.mean([np.ptp(LENGTHS[step]) for step in plain])
        # shuffled, not from the longest to the shortest
        means = [LENGTHS[step].mean() for step in grouped]
        assert means != sorted(means) and means != sorted(means, reverse=True)


def test_any_step_is_known_without_those_before() -> None:
    straight = [LengthOrder(GlobalOrder(2000, 8, 3), LENGTHS, 3, 130).indices(step) for step in range(160)]
    order = LengthOrder(GlobalOrder(2000, 8, 3), LENGTHS, 3, 130)
    assert all(order.indices(step) == straight[step] for step in (129, 3, 149, 0, 51, 50, 100, 130))


def test_small_sets_have_small_windows() -> None:
    assert LengthOrder(GlobalOrder(64, 8, 0), LENGTHS[:64], 0, 10).window == 2
    order = LengthOrder(GlobalOrder(10, 8, 0), LENGTHS[:10], 0, 10)
    assert order.window == 1 and sorted(order.indices(3)) == sorted(GlobalOrder(10, 8, 0).indices(3))
