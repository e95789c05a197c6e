"""The cuts of a mixture's 3-D weights: whole experts, neurons of each expert, and hidden dimensions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from apt_ds.models.blocks import DOWN, GATE_UP, HIDDEN, Anatomy, FusedExperts, block_slices


@dataclass(frozen=True)
class ExpertCut:
    """The cut of one 3-D weight.

    Attributes:
        path: path of the module.
        name: `GATE_UP` [E, 2 f, d_m] or `DOWN` [E, d_m, f].
        experts: int64 [kept experts], ascending.
        neurons: int64 [kept experts, kept neurons of each], ascending.
        hidden: int64, ascending. None: all remain.
        tied_to: always None. Such weights are not shared.
    """

    path: str
    name: str
    experts: Tensor
    neurons: Tensor
    hidden: Tensor | None
    tied_to: None = None

    def part_of(self, tensor: Tensor, scaled: bool = True) -> Tensor:
        """A contiguous copy of the entries that remain. No entry is scaled."""
        down = self.name == DOWN
        count = tensor.shape[2] if down else tensor.shape[1] // 2
        parts = []
        for expert, own in zip(self.experts.tolist(), self.neurons.to(tensor.device), strict=True):
            matrix = tensor[expert]
            matrix = matrix[:, own] if down else matrix[torch.cat([own, own + count])]
            if self.hidden is not None:
                matrix = matrix.index_select(0 if down else 1, self.hidden.to(tensor.device))
            parts.append(matrix)
        return torch.stack(parts)


def expert_cuts(anatomy: Anatomy, keep: np.ndarray) -> Iterator[ExpertCut]:
    """The jobs of a cut for all mixtures that lose something.

    Args:
        anatomy: the anatomy before the cut.
        keep: bool [blocks], the blocks that remain. All kept experts of a layer keep the same number of neurons, and
            the others none.
    """
    where = dict(block_slices(anatomy.sizes))
    hidden = None if keep[where[HIDDEN]].all() else torch.from_numpy(np.flatnonzero(keep[where[HIDDEN]]))
    for mixture in anatomy.experts:
        if hidden is None and keep[where[mixture.neuron_site]].all():
            continue
        experts, neurons = kept_entries(anatomy, mixture, keep)
        for name in (GATE_UP, DOWN):
            yield ExpertCut(mixture.path, name, experts, neurons, hidden)


def kept_entries(anatomy: Anatomy, mixture: FusedExperts, keep: np.ndarray) -> tuple[Tensor, Tensor]:
    """Kept experts, int64 [E'], and the kept neurons of each, int64 [E', f']."""
    where = dict(block_slices(anatomy.sizes))
    experts = np.flatnonzero(keep[where[mixture.expert_site]])
    table = keep[where[mixture.neuron_site]].reshape(mixture.shape(anatomy.sizes))
    numbers = table.sum(axis=1)
    assert len(set(numbers[experts])) == 1 and numbers.sum() == numbers[experts].sum(), (
        f"{mixture.path}: kept experts must keep the same number of neurons, and the others none"
    )
    neurons = np.nonzero(table[experts])[1].reshape(len(experts), -1)
    return torch.from_numpy(experts), torch.from_numpy(neurons)
