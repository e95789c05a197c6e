"""Values of masks: how they move, and the tensors of each site."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apt_ds.config.schedules import mask_moves
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import HIDDEN, block_slices
from apt_ds.pruning.mask_values import MaskValues
from tests.support import tiny


def test_masks_reach_both_ends_exactly() -> None:
    anatomy = anatomy_of(tiny.config("gqa"))
    masks, keep = MaskValues(anatomy), np.ones(anatomy.sizes.total(), dtype=bool)
    keep[0] = False
    for _ in range(99):
        masks.move_towards(keep, 0.01)
    assert not masks.fully_masked().any()
    masks.move_towards(keep, 0.01)
    assert masks.fully_masked().tolist() == [True] + [False] * (len(keep) - 1)
    for _ in range(100):
        masks.move_towards(np.ones_like(keep), 0.01)
    assert (masks.values == 1.0).all()


@pytest.mark.parametrize("step", [1 / 3, 0.3, 0.07, 0.027, 0.01, 1 / 777, 1e-4, 1.0])
def test_masks_of_any_step_arrive_when_the_schedule_says(step: float) -> None:
    anatomy = anatomy_of(tiny.config("mha"))
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    keep[::2] = False
    masks, moves = MaskValues(anatomy), mask_moves(step)
    for towards in (keep, ~keep):
        # half are at their ends already, the others have the whole way to go
        for _ in range(moves - 1):
            masks.move_towards(towards, step)
        assert not (masks.values == towards).all()
        masks.move_towards(towards, step)
        assert (masks.values == towards).all()
        assert set(masks.values) == {0.0, 1.0}


def test_a_site_has_a_column_for_every_entry_of_its_blocks() -> None:
    anatomy = anatomy_of(tiny.config("mha"))
    masks, places = MaskValues(anatomy), dict(block_slices(anatomy.sizes))
    like = torch.zeros(1, dtype=torch.bfloat16)
    assert masks.mask_for(0, like, 3) is None  # all are 1
    values = np.ones(anatomy.sizes.total())
    values[places[0].start + 1] = 0.5
    masks.set(values)
    mask = masks.mask_for(0, like, 3)
    assert mask is not None and mask.dtype == torch.bfloat16
    assert mask[:7].tolist() == [1.0] * 3 + [0.5] * 3 + [1.0]
    assert masks.mask_for(0, like, 3) is mask and masks.mask_for(HIDDEN, like) is None
    masks.set(np.ones_like(values))
    assert masks.mask_for(0, like, 3) is None


def test_masks_that_learn_sum_up_their_gradients_until_they_are_set() -> None:
    anatomy = anatomy_of(tiny.config("mha"))
    masks, places = MaskValues(anatomy), dict(block_slices(anatomy.sizes))
    masks.learn(np.full(anatomy.sizes.total(), 0.5))
    for _ in range(2):
        mask = masks.mask_for(0, torch.zeros(1), 3)
        assert mask is not None and mask.dtype == torch.float32
        mask.sum().backward()
    gradients = masks.gradients(torch.device("cpu"))
    assert (gradients[places[0]] == 6.0).all() and not gradients[places[1]].any()
    masks.set(masks.values)
    assert not masks.gradients(torch.device("cpu")).any()
