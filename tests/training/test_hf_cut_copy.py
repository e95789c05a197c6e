"""The cut copy of a masked model computes what the model does, and the model stays as it is."""

from __future__ import annotations

import copy

import pytest
import torch

from apt_ds.models.adapter import adapters
from apt_ds.pruning.masks import Masks
from apt_ds.pruning.surgery import Plan, apply_plan
from apt_ds.training.hf_cut_copy import cut_copy
from tests.models import test_architectures, test_families
from tests.pruning.test_masks import random_keep
from tests.support import tiny, tiny_families


@pytest.mark.parametrize("row", ["llama3", "gemma2", "bert-classes", "t5"])
def test_the_copy_equals_the_masked_model(row: str) -> None:
    decoder = row in tiny_families.FAMILIES
    model, anatomy = test_families.adapted(row) if decoder else test_architectures.dressed(row)
    config = copy.deepcopy(model.config)
    grown = next(path for path, _ in adapters(model))
    apply_plan(model, anatomy, Plan(grow={grown: 5}), None, torch.Generator())
    keep = random_keep(anatomy, 1)
    masks = Masks(anatomy)
    masks.install(model)
    masks.set(keep.astype(float))
    masked = tiny.answer(model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    targets = test_families.TARGETS if decoder else ("q", "v", "up")
    copied, smaller = cut_copy(
        model, config, anatomy, keep, tiny.TASKS.get(row, "language model"), tuple(t for t in targets)
    )
    assert smaller.num_parameters(smaller.sizes) < anatomy.num_parameters(anatomy.sizes)
    torch.testing.assert_close(tiny.answer(copied.eval()), masked, atol=1e-5, rtol=0)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(tiny.answer(model), masked)
