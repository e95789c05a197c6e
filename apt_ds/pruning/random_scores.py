"""Random scores: the control of every comparison."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from apt_ds.models.blocks import Anatomy
from apt_ds.pruning.scorer import Scorer


class Random(Scorer):
    """Random densities: the control.

    Attributes:
        densities: float64 [blocks], drawn once for the original blocks.
    """

    def __init__(self, anatomy: Anatomy, device: torch.device, seed: int) -> None:
        super().__init__(anatomy, device)
        self.densities = np.random.default_rng(seed).random(anatomy.sizes.total())

    def scores(self) -> np.ndarray:
        """Density times parameters, float64 [blocks]."""
        return self.densities * self.anatomy.params_per_block(self.anatomy.sizes)

    def after_cut(self, anatomy: Anatomy, keep: np.ndarray) -> None:
        """Keep the densities of the blocks that remain."""
        self.resize(anatomy)
        self.densities = self.densities[keep]

    def load_state_dict(self, kept_ids: np.ndarray, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take the densities of the blocks that remain."""
        self.densities = self.densities[kept_ids]
