"""First-order Taylor importance of weight groups: the baseline Prune+LoRA.

After Ma, Fang and Wang, "LLM-Pruner", NeurIPS 2023. A block's importance is the sum of |w * dL/dw| over all weights of
the block. The gradient is that of a calibration set. Departures: `budget_search` gives budget, alignment and structure,
and no layer is exempt. Unlike salience this score needs the gradient of every weight, and so an engine that trains all
weights.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from apt_ds.config.errors import UserError
from apt_ds.models.blocks import DOWN, GATE_UP, HIDDEN, Anatomy, Axis, FusedExperts, block_slices
from apt_ds.pruning.scorer import Scorer
from apt_ds.runtime import zero


class Taylor(Scorer):
    """First-order Taylor importance of all weights of a block.

    Attributes:
        importance: float64 [blocks]. Zero before `score_weight_gradients`.
    """

    uses_weight_gradients = True

    def resize(self, anatomy: Anatomy) -> None:
        """Forget the importance."""
        super().resize(anatomy)
        self.importance = np.zeros(anatomy.sizes.total())

    def score_weight_gradients(self, engine: zero.Engine) -> None:
        """Sum |w * dL/dw| over the weights of every block. Collective.

        Raises:
            UserError: a loss or gradient of the calibration was not finite.
        """
        importance = block_importance(engine, self.anatomy).double().cpu().numpy()
        if not np.isfinite(importance).all():
            raise UserError("calibration: non-finite loss or gradient. Use --bf16 or look at the data of its steps")
        self.importance = importance

    def scores(self) -> np.ndarray:
        """The importance, float64 [blocks]."""
        return self.importance

    def after_cut(self, anatomy: Anatomy, keep: np.ndarray) -> None:
        """Keep the importance of the blocks that remain."""
        importance = self.importance[keep]
        self.resize(anatomy)
        self.importance = importance


@torch.no_grad()
def block_importance(engine: zero.Engine, anatomy: Anatomy) -> Tensor:
    """Sum |w * dL/dw| over the weights of each block. Collective. Gathers one weight at a time.

    Call it after the boundary's backward and before the step. Norms, biases and routers have no price and do not count.

    Returns:
        fp32 [blocks], the same on all ranks.
    """
    importance = torch.zeros(anatomy.sizes.total(), device=zero.device())
    where = dict(block_slices(anatomy.sizes))
    seen: set[int] = set()
    zero.release_gathered(engine)
    routers = {mixture.router for mixture in anatomy.experts}
    for slot in anatomy.slots:
        weight = getattr(engine.module.get_submodule(slot.path), "weight", None)
        if slot.path in routers or weight is None or id(weight) in seen or len(zero.full_shape(weight)) < 2:
            continue
        seen.add(id(weight))
        with zero.gathered([weight]):
            product = (weight.float() * zero.full_gradient(engine, weight)).abs()
        for axis, sums in ((slot.rows, product.sum(1)), (slot.columns, product.sum(0))):
            if axis is not None:
                importance[where[axis.site]] += per_block(sums, axis)
    for mixture in anatomy.experts:
        neurons, hidden = expert_importance(engine, mixture)
        importance[where[mixture.neuron_site]] += neurons.flatten()
        importance[where[mixture.expert_site]] += neurons.sum(1)
        importance[where[HIDDEN]] += hidden
    return importance


def expert_importance(engine: zero.Engine, mixture: FusedExperts) -> tuple[Tensor, Tensor]:
    """Sum |w * dL/dw| over the weights of a mixture: fp32 [E, f] of neurons, and [d_m] of hidden dimensions."""
    products = {}
    for name in (GATE_UP, DOWN):
        weight = engine.module.get_submodule(mixture.path).get_parameter(name)
        with zero.gathered([weight]):
            products[name] = (weight.float() * zero.full_gradient(engine, weight)).abs()
    ups, down = products[GATE_UP], products[DOWN]
    neurons = ups.sum(2).view(len(ups), 2, -1).sum(1) + down.sum(1)
    return neurons, ups.sum((0, 1)) + down.sum((0, 2))


def per_block(sums: Tensor, axis: Axis) -> Tensor:
    """Entries of a dimension summed over each block: [blocks * unit] -> [blocks]."""
    count, parts = len(sums) // axis.unit, axis.parts or (axis.unit,)
    pieces = sums.split([count * entries for entries in parts])
    return torch.stack([p.view(count, n).sum(1) for p, n in zip(pieces, parts, strict=True)]).sum(0)
