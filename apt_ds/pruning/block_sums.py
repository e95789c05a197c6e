"""Sums over the dimensions of each block, in an order that does not vary.

Ranks decide for themselves from reduced observations, so that every rank must add in the same order. `index_add_` adds
in any order on a GPU. In deterministic mode it adds the entries of a block one after another: 95 ms a step at 7B on an
H200. Here each block gathers its dimensions and all blocks of one size are summed at once.
"""

from __future__ import annotations

import torch
from torch import Tensor


class BlockSums:
    """Which dimensions each block has."""

    def __init__(self, owner: Tensor, blocks: int) -> None:
        """Sort the dimensions by block.

        Args:
            owner: int64 [dimensions], the block of each dimension.
            blocks: number of blocks. Some may have no dimension.
        """
        self.blocks = blocks
        counts = torch.bincount(owner.cpu(), minlength=blocks)
        order, starts = torch.argsort(owner.cpu(), stable=True), counts.cumsum(0) - counts
        # (blocks of one size, their dimensions [blocks, size])
        self._groups: list[tuple[Tensor, Tensor]] = []
        for size in counts.unique().tolist():
            if size:
                own = (counts == size).nonzero().squeeze(1)
                dimensions = order[starts[own].unsqueeze(1) + torch.arange(size)]
                self._groups.append((own.to(owner.device), dimensions.to(owner.device, torch.int32)))

    def sum(self, values: Tensor) -> Tensor:
        """Sum over each block: [..., dimensions] -> [..., blocks]."""
        sums = values.new_zeros(*values.shape[:-1], self.blocks)
        for own, dimensions in self._groups:
            each = values.index_select(-1, dimensions.flatten()).unflatten(-1, dimensions.shape)
            sums.index_copy_(-1, own, each.sum(-1) if each.shape[-1] > 1 else each.squeeze(-1))
        return sums
