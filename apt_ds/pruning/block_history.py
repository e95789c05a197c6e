"""Which original blocks remain, and which cut removed each of the others.

A checkpoint stores this history instead of frozen weights. A resumed run repeats every cut on the base model: a
quantized weight that was cut and quantized again twice differs from one that was cut once.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class BlockHistory:
    """The blocks of a run from its first step on.

    Attributes:
        kept_ids: int64 [blocks], the original number of every block that remains.
        removed_in_cut: int64 [original blocks], the number of the cut that removed it, from 1. 0 for a block that
            remains.
        scale: float64 [blocks], the factor that cuts have multiplied each remaining block with.
    """

    def __init__(self, blocks: int) -> None:
        self.kept_ids = np.arange(blocks)
        self.removed_in_cut = np.zeros(blocks, dtype=np.int64)
        self.scale = np.ones(blocks)

    def follow(self, keep: np.ndarray, scale: np.ndarray | None) -> None:
        """Record a cut.

        Args:
            keep: bool [blocks], the blocks that remain.
            scale: float64 [blocks], their factors in this cut. None: all 1.
        """
        self.scale = (self.scale if scale is None else self.scale * scale)[keep]
        self.removed_in_cut[self.kept_ids[~keep]] = self.removed_in_cut.max() + 1
        self.kept_ids = self.kept_ids[keep]

    def state_dict(self) -> dict[str, Tensor]:
        """The three arrays as tensors."""
        return {name: torch.from_numpy(getattr(self, name)) for name in ("kept_ids", "removed_in_cut", "scale")}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take over `state_dict`."""
        self.kept_ids, self.removed_in_cut = tensors["kept_ids"].numpy(), tensors["removed_in_cut"].numpy()
        self.scale = tensors["scale"].numpy()
