"""First-order Taylor importance of weight groups: the baseline Prune+LoRA.

After Ma, Fang and Wang, "LLM-Pruner", NeurIPS 2023: a block's importance is the sum of |w * dL/dw| over all weights
that go with it, the gradient taken over a calibration set. Departure: budget, alignment and structure are those of
`search`; no layer is exempt. Unlike salience this needs the gradient of every weight: an engine that trains them all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from apt_ds.models.blocks import Anatomy, Axis, block_slices
from apt_ds.runtime import zero


@torch.no_grad()
def block_importance(engine: zero.Engine, anatomy: Anatomy) -> Tensor:
    """Sum |w * dL/dw| over each block's weights, fp32 [blocks], the same on all ranks.

    After the boundary's backward, before any step. Norms and biases, which have no price, do not count. Collective;
    gathers one weight at a time.
    """
    importance = torch.zeros(anatomy.sizes.total(), device=zero.device())
    where = dict(block_slices(anatomy.sizes))
    seen: set[int] = set()
    zero.release_gathered(engine)
    for slot in anatomy.slots:
        weight = engine.module.get_submodule(slot.path).weight
        if id(weight) in seen or len(zero.full_shape(weight)) < 2:
            continue
        seen.add(id(weight))
        with zero.gathered([weight]):
            product = (weight.float() * zero.full_gradient(engine, weight)).abs()
        for axis, sums in ((slot.rows, product.sum(1)), (slot.columns, product.sum(0))):
            if axis is not None:
                importance[where[axis.site]] += per_block(sums, axis)
    return importance


def per_block(sums: Tensor, axis: Axis) -> Tensor:
    """Entries of a dimension summed over each block's: [blocks * unit] -> [blocks]."""
    return sums.view(-1, axis.unit).sum(1)
