"""The tensors to write for each weight of a model: adapters merged, zeros added, edited, joined, quantized or split."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from apt_ds.models import quantization
from apt_ds.models.adapter import AptLinear
from apt_ds.models.export.form import Edits, Split, whole
from apt_ds.models.export.joined import JoinedWeights
from apt_ds.models.export.padding import Padding
from apt_ds.runtime.packed import QuantizedParameter


@dataclass
class Format:
    """How weights are written.

    Attributes:
        dtype: dtype of all weights that are not quantized.
        bits: below 16, quantized weights stay quantized, in several tensors each. One with an adapter is quantized
            again.
        edits: functions of weights, by name. The result is written.
        joined: the weights that are written as one.
        split: (name, CPU tensor) of what to write for a weight, by (name, CPU tensor).
        padding: where zeros are added. None: nowhere.
        dropped: names of zero weights that are not written.
        padding_bytes: bytes of the zeros so far.
    """

    dtype: torch.dtype
    bits: int = 16
    edits: Edits = field(default_factory=dict)
    joined: JoinedWeights = field(default_factory=lambda: JoinedWeights({}))
    split: Split = whole
    padding: Padding | None = None
    dropped: Set[str] = frozenset()
    padding_bytes: int = 0

    def tensors(self, name: str, module: nn.Module, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
        """(name, CPU tensor) of the tensors to write for a weight, its adapter merged. It must be gathered."""
        adapter = module if isinstance(module, AptLinear) and parameter is module.weight else None
        if name in self.dropped:
            assert not parameter.any(), f"{name} is not zero"
            return
        changes = (
            adapter is not None or name in self.joined or (self.padding is not None and self.padding.changes(name))
        )
        if not changes and self.bits < 16 and isinstance(parameter, QuantizedParameter):
            yield from self._quantized(name, parameter)
            return
        value = adapter.merged() if adapter is not None else quantization.dense(parameter)
        if self.padding is not None:
            padded = self.padding.pad(name, value)
            self._count(parameter, padded.numel() - value.numel())
            value = padded
        yield from self.formed(name, parameter, value)

    def missing(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """(name, CPU tensor) of the zeros to write for sublayers without blocks, in a padded model."""
        for name, sibling, zeros in self.padding.missing(model) if self.padding is not None else ():
            self._count(sibling, zeros.numel())
            yield from self.formed(name, sibling, zeros.to(sibling.device))

    def _count(self, like: nn.Parameter, zeros: int) -> None:
        """Add to `padding_bytes`."""
        bits = self.bits if isinstance(like, QuantizedParameter) and self.bits < 16 else 8 * self.dtype.itemsize
        self.padding_bytes += zeros * bits // 8

    def formed(self, name: str, like: nn.Parameter, value: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(name, CPU tensor) of the tensors to write for a value, joined, edited, and quantized as `like` is.

        Of a joined weight there are none before its last part.
        """
        if name in self.joined:
            complete = self.joined.add(name, value.detach().clone())
            if complete is None:
                return
            name, value = complete
        if name in self.edits:
            value = self.edits[name](value)
        if self.bits < 16 and isinstance(like, QuantizedParameter):
            packed = quantization.requantize_like(like, value)
            assert isinstance(packed, QuantizedParameter)
            yield from self._quantized(name, packed)
            return
        # always a copy: leaving `gathered` frees the gathered weight
        yield from self.split(name, value.to("cpu", self.dtype, copy=True))

    def _quantized(self, name: str, packed: QuantizedParameter) -> Iterator[tuple[str, Tensor]]:
        for part, value in quantization.files(name, packed, self.dtype).items():
            yield part, value.cpu().clone()
