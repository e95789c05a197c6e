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
from apt_ds.models.blocks import Anatomy, Axis, block_slices
from apt_ds.pruning.scorer import Scorer
from apt_ds.runtime import zero


class Taylor(Scorer):
    """First-order Taylor importance of all weights of a block.

    importance: float64 [blocks], zero before `score_weight_gradients`.
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

    Call it after the boundary's backward and before the step. Norms and biases have no price and do not count.

    Returns:
        fp32 [blocks], the same on all ranks.
    """
    importance = torch.zeros(anatomy.sizes.total(), device=zero.device())
    where = dict(block_slices(anatomy.sizes))
    seen: set[int] = set()
    zero.release_gathered(engine)
    for slot in anatomy.slots:
        weight = getattr(engine.module.get_submodule(slot.path), "weight", None)
        if weight is None or id(weight) in seen or len(zero.full_shape(weight)) < 2:
            continue
        seen.add(id(weight))
        with zero.gathered([weight]):
            product = (weight.float() * zero.full_gradient(engine, weight)).abs()
        for axis, sums in ((slot.rows, product.sum(1)), (slot.columns, product.sum(0))):
            if axis is not None:
                importance[where[axis.site]] += per_block(sums, axis)
    return importance


def per_block(sums: Tensor, axis: Axis) -> Tensor:
    """Entries of a dimension summed over each block: [blocks * unit] -> [blocks]."""
    count, parts = len(sums) // axis.unit, axis.parts or (axis.unit,)
    pieces = sums.split([count * entries for entries in parts])
    return torch.stack([p.view(count, n).sum(1) for p, n in zip(pieces, parts, strict=True)]).sum(0)
