"""What one optimizer step sums over ranks, packed for a single all-reduce."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor


class StepValues(NamedTuple):
    """What the host reads of a step's sums.

    Attributes:
        loss: task loss summed over the global batch.
        stop_ranks: number of ranks that have a reason to end the run.
        finite: whether every element of every sum is finite.
        teacher_distances: distances between teacher and student layers, fp32 [distances] on the CPU.
    """

    loss: float
    stop_ranks: int
    finite: bool
    teacher_distances: Tensor


@dataclass
class StepSums:
    """One rank's parts of a step's sums, or the sums over ranks. Floating-point tensors on one device.

    Attributes:
        loss: task loss, [].
        stop: 1 if the rank received a signal or could not write a line of metrics, [].
        teacher_distances: distances between teacher and student layers, [distances]. May be empty.
        block_sums: the scorer's sums over blocks, any shape. May be empty.
        adapter_importances: sum of |weight x gradient| of each adapter, [adapters]. May be empty.
    """

    loss: Tensor
    stop: Tensor
    teacher_distances: Tensor
    block_sums: Tensor
    adapter_importances: Tensor

    def parts(self) -> list[Tensor]:
        """All sums in the order of `pack`."""
        return [getattr(self, field.name) for field in fields(self)]

    def pack(self) -> Tensor:
        """All sums as one new fp32 tensor, [elements]."""
        return torch.cat([part.float().flatten() for part in self.parts()])

    def unpack(self, reduced: Tensor) -> StepSums:
        """Sums of the shapes of these, as views of a tensor that `pack` made and an all-reduce summed."""
        parts = self.parts()
        pieces = reduced.split([part.numel() for part in parts])
        return StepSums(*(piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)))

    def read(self) -> StepValues:
        """Copy what the host needs from the device. This is the only wait of a step for the device."""
        finite = torch.stack([torch.isfinite(part).all() for part in self.parts()]).all()
        values = torch.stack([self.loss.float(), self.stop.float(), finite.float()])
        read = torch.cat([values, self.teacher_distances.float().flatten()]).cpu()
        loss, stop_ranks, all_finite = read[:3].tolist()
        return StepValues(loss, int(stop_ranks), bool(all_finite), read[3:])
