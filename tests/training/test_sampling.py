"""How many examples of each source a run takes, for every kind of order."""

from __future__ import annotations

import numpy as np
import pytest

from apt_ds.config.run_config import RunConfig
from apt_ds.data.rows import Joined
from apt_ds.data.sources import WeightedSource
from apt_ds.data.tokenized import TokenizedSet
from apt_ds.training.sampling import Sampled, calibration_order, sampling

ROWS = Joined([TokenizedSet.of([{"input_ids": [1] * (1 + i % 9)} for i in range(n)]) for n in (70, 30, 25)])


@pytest.mark.parametrize("weights", [(None, None, None), (0.2, 0.5, 0.3)])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("world", [1, 2])
def test_what_is_said_to_be_seen_was_seen(grouped: bool, weights: tuple[float | None, ...], world: int) -> None:
    names = tuple(WeightedSource(name, weight) for name, weight in zip("abc", weights, strict=True))
    run = RunConfig(group_by_length=grouped, max_steps=37, per_device_train_batch_size=2, calibration_steps=5)
    order, steps = sampling(run, ROWS, names, world)
    assert steps == 37 and order.global_batch == 2 * world
    for count in (5, 37):
        drawn = np.array([index for step in range(count) for index in order.indices(step)])
        expected = [int(((drawn >= a) & (drawn < b)).sum()) for a, b in ((0, 70), (70, 100), (100, 125))]
        figures = Sampled(ROWS, order, names).figures(count)
        assert [row["seen"] for row in figures] == expected
        assert [row["rows"] for row in figures] == [70, 30, 25]
        assert [row["weight"] for row in figures] == [0.56, 0.24, 0.2] if weights[0] is None else [0.2, 0.5, 0.3]
    scored = calibration_order(run, ROWS, names, world)
    rows = [sorted(i for s in range(5) for i in each.indices(s)) for each in (scored, getattr(scored, "order", scored))]
    assert rows[0] == rows[1]


def test_epochs_count_the_rows_of_all_sources() -> None:
    names = (WeightedSource("a", 0.9), WeightedSource("b", 0.05), WeightedSource("c", 0.05))
    run = RunConfig(num_train_epochs=2.0, per_device_train_batch_size=4)
    assert sampling(run, ROWS, names, 1)[1] == -(-2 * 125 // 4) == sampling(run, ROWS, names[:1], 1)[1]
