"""When a checkpoint is due."""

from __future__ import annotations

import pytest

from apt_ds.training.saving import is_due


@pytest.mark.parametrize(
    ("every", "total", "due"),
    [
        (0, 6, []),
        (1, 3, [1, 2, 3]),
        (4, 10, [4, 8, 10]),
        (5, 10, [5, 10]),
        # a run shorter than the distance asks for none
        (7, 6, []),
        (6, 6, [6]),
    ],
)
def test_which_steps_are_saved(every: int, total: int, due: list[int]) -> None:
    assert [step for step in range(1, total + 1) if is_due(step, total, every)] == due
