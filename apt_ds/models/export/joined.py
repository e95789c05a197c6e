"""Weights that a stock model has as one and the trained model as several."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class JoinedWeights:
    """Collects the parts of joined weights. Each part is freed with the last one of its weight.

    Attributes:
        parts: the parts of each joined weight, in the order of their rows.
    """

    def __init__(self, parts: Mapping[str, tuple[str, ...]]) -> None:
        self.parts = parts
        self._whole = {name: whole for whole, names in parts.items() for name in names}
        self._waiting: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._whole

    def add(self, name: str, value: Tensor) -> tuple[str, Tensor] | None:
        """Take a part, [rows, columns].

        Returns:
            (name, value) of the joined weight once all parts are there, else None.
        """
        self._waiting[name] = value
        whole = self._whole[name]
        if not all(part in self._waiting for part in self.parts[whole]):
            return None
        return whole, torch.cat([self._waiting.pop(part) for part in self.parts[whole]])
