"""The values of soft masks: one per block, as tensors for each site, with or without gradients (METHOD.md section 4).

Masks that `learn` are leaves of the graph. Every backward pass adds to their gradients. The leaves and their products
are fp32, so that no gradient overflows or rounds in half precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from apt_ds.config.schedules import SNAP
from apt_ds.models.blocks import HIDDEN, Anatomy, block_slices
from apt_ds.runtime.transfer import sent


class MaskValues:
    """The mask of every block.

    Attributes:
        anatomy: the blocks.
        values: float64 [blocks], 0 to 1, on the host, the same on all ranks.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self.values = np.ones(anatomy.sizes.total())
        self._cached: dict[tuple[int, int], Tensor | None] = {}
        self._sent: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._places = dict(block_slices(anatomy.sizes))
        self._kept_fraction = 1.0
        self._disabled = False
        self._scale: Tensor | None = None
        self._leaves: dict[int, Tensor] | None = None  # while masks learn, by site

    def move_towards(self, keep: np.ndarray, step: float) -> None:
        """Move by `step` towards 1 where `keep` (bool [blocks]), towards 0 elsewhere. Masks reach both ends exactly."""
        # most masks are at their end already
        moving = np.flatnonzero(self.values != keep)
        near, ends = SNAP * step, keep[moving]
        values = self.values[moving] + np.where(ends, step, -step)
        # 100 steps of 0.01 must reach 0, not 1e-16
        values = np.where(values < near, 0.0, np.where(values > 1.0 - near, 1.0, values))
        moved = self.values.copy()
        moved[moving] = values
        self._take(moved)

    def set(self, values: np.ndarray) -> None:
        """Set all masks. values: float64 [blocks], 0 to 1."""
        self._take(values.copy())

    def learn(self, values: np.ndarray) -> None:
        """Set all masks, and collect their gradients until they are set again. values: float64 [blocks], 0 to 1."""
        self._take(values.copy())
        self._leaves = {}

    def gradients(self, device: torch.device) -> Tensor:
        """The sum of the gradients of this rank's backward passes since `learn`, fp32 [blocks].

        0 where every mask of a site is 1, and for blocks that no backward pass has reached.
        """
        gradients = torch.zeros(len(self.values), device=device)
        for site, leaf in (self._leaves or {}).items():
            if leaf.grad is not None:
                gradients[self._places[site]] = leaf.grad
        return gradients

    def _take(self, values: np.ndarray) -> None:
        self.values, self._leaves = values, None
        self._cached.clear()
        self._sent.clear()
        self._kept_fraction = float(self._values_of(HIDDEN).mean())

    def fully_masked(self) -> np.ndarray:
        """Blocks whose mask has reached 0, bool [blocks]."""
        return self.values == 0.0

    @contextmanager
    def scaled(self, scale: Tensor) -> Iterator[None]:
        """Inside, max(scale, 0) multiplies what consumers read at sites that lose blocks, as `Plan.scale` does.

        scale: fp32 [blocks], on the device. It gets gradients if it requires them.
        """
        self._scale = scale
        try:
            yield
        finally:
            self._scale = None

    def mask_for(self, site: int, like: Tensor, unit: int = 1) -> Tensor | None:
        """The mask of a site's columns.

        Args:
            site: the site, or `HIDDEN`.
            like: the tensor to mask. The mask takes its device and dtype.
            unit: columns per block.

        Returns:
            [blocks * unit], None where all are 1 or masks are disabled. fp32 while masks learn.
        """
        if self._disabled:
            return None
        if self._leaves is not None:
            leaf = self._leaf(self._leaves, site, like.device)
            # an expanded view sums its gradient in a fixed order
            return leaf if leaf is None or unit == 1 else leaf.unsqueeze(-1).expand(-1, unit).reshape(-1)
        if (site, unit) not in self._cached:
            place = self._places[site]
            if (self.values[place] == 1.0).all():
                self._cached[site, unit] = None
            else:
                mask = self._all_on(like.device, like.dtype).narrow(0, place.start, place.stop - place.start)
                self._cached[site, unit] = mask if unit == 1 else mask.repeat_interleave(unit)
        return self._cached[site, unit]

    def _leaf(self, leaves: dict[int, Tensor], site: int, device: torch.device) -> Tensor | None:
        """The leaf of a site, fp32 [blocks]. None where all masks are 1."""
        values = self._values_of(site)
        if site not in leaves and not (values == 1.0).all():
            leaves[site] = sent(torch.from_numpy(values).float(), device).requires_grad_()
        return leaves.get(site)

    def _all_on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """All masks on a device, [blocks]: one copy for all sites."""
        if (device, dtype) not in self._sent:
            self._sent[device, dtype] = sent(torch.from_numpy(self.values).to(dtype), device)
        return self._sent[device, dtype]

    def _values_of(self, site: int) -> np.ndarray:
        return self.values[self._places[site]]
