"""The parameter that carries a weight of 4 or 8 bits through DeepSpeed."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class QuantizedParameter(nn.Parameter):
    """A frozen weight in `bits` bits. Its data are the codes: raw bytes seen as numbers of the run's dtype.

    That is what an engine of that dtype neither casts nor refuses, and what ZeRO-3 can shard. The scales are small
    and whole on every rank.

    Attributes:
        bits: 4 or 8.
        full: shape of the weight that it stands for, [out, in].
        scales: bitsandbytes' QuantState, or fp32 [out].
        requantization_error: relative error that cutting and quantizing again has added to it.
    """

    bits: int
    full: torch.Size
    scales: Any
    requantization_error: float

    def __new__(
        cls, codes: Tensor, bits: int, full: torch.Size, scales: Any, dtype: torch.dtype, lost: float = 0.0
    ) -> QuantizedParameter:
        """Make the parameter.

        Args:
            codes: uint8, as bitsandbytes makes them, in any shape.
            bits: 4 or 8.
            full: shape of the weight, [out, in].
            scales: see the class.
            dtype: what the bytes of the codes are seen as.
            lost: the relative error so far.
        """
        raw = codes.reshape(-1)
        raw = F.pad(raw, (0, -raw.numel() % dtype.itemsize)).clone().view(dtype)
        parameter = torch.Tensor._make_subclass(cls, raw, False)
        parameter.bits, parameter.full, parameter.scales, parameter.requantization_error = bits, full, scales, lost
        return parameter

    def codes(self) -> Tensor:
        """The codes, uint8, flat. The parameter must be gathered."""
        return self.detach().contiguous().view(torch.uint8)[: self.full.numel() * self.bits // 8]
