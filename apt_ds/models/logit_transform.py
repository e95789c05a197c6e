"""What a family does to its logits after the LM head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogitTransform:
    """z = scale * y, or z = cap * tanh(scale * y / cap) with a cap. y is the output of the LM head.

    Attributes:
        scale: the factor.
        cap: the bound of |z|. None: there is no bound.
    """

    scale: float = 1.0
    cap: float | None = None

    @property
    def is_identity(self) -> bool:
        """Whether z is y."""
        return self.scale == 1.0 and self.cap is None

    def apply(self, outputs: Tensor) -> Tensor:
        """The logits z. outputs: y, of any shape."""
        scaled = outputs if self.scale == 1.0 else outputs * self.scale
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap

    def derivative(self, logits: Tensor) -> Tensor | float:
        """dz/dy as a function of z: scale * (1 - (z / cap)^2). logits: z, of any shape."""
        return self.scale if self.cap is None else (1 - (logits / self.cap).square()) * self.scale


IDENTITY = LogitTransform()
