"""The tensors to write for each weight of a model: adapters merged, zeros added, edited, joined, quantized or split."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from apt_ds.models import quantization
from apt_ds.models.adapter import AptLinear
from apt_ds.models.export.form import Edits, Split, Written, whole
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
        merge: whether adapters are merged. False writes the weights beside them.
        padding: where zeros are added. None: nowhere.
        dropped: names of zero weights that are not written.
        padding_bytes: bytes of the zeros so far.
    """

    dtype: torch.dtype
    bits: int = 16
    edits: Edits = field(default_factory=dict)
    joined: JoinedWeights = field(default_factory=lambda: JoinedWeights({}))
    split: Split = whole
    merge: bool = True
    padding: Padding | None = None
    dropped: Set[str] = frozenset()
    padding_bytes: int = 0

    @classmethod
    def of(cls, content: Written, model: nn.Module, dtype: torch.dtype, bits: int, merge: bool) -> Format:
        """How the weights of `model` are written in the form `content`."""
        padding, joined = content.padding, JoinedWeights(content.joined)
        dropped = set() if padding is None else padding.dropped(model)
        return cls(dtype, bits, content.edits, joined, content.split, merge, padding, dropped)

    def tensors(self, name: str, module: nn.Module, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
        """(name, CPU tensor) of the tensors to write for a weight, its adapter merged. It must be gathered."""
        adapter = module if self.merge and isinstance(module, AptLinear) and parameter is module.weight else None
        if name in self.dropped:
            assert not parameter.any(), f"{name} is not zero"
            return
        pads = self.padding is not None and self.padding.changes(name)
        quantized = self.bits < 16 and isinstance(parameter, QuantizedParameter)
        if quantized and adapter is None and not pads and name not in self.joined:
            yield from self._quantized(name, parameter)
            return
        value = adapter.merged() if adapter is not None else quantization.dense(parameter)
        if pads and self.padding is not None:
            if quantized and adapter is not None:
                # as the adaptive form is quantized: zeros then change no value
                value = quantization.dense(quantization.requantize_like(parameter, value))
            padded = self.padding.pad(name, value)
            self._count(parameter, value.numel(), padded.numel())
            value = padded
        yield from self.formed(name, parameter, value, pads)

    def missing(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """(name, CPU tensor) of the zeros to write for sublayers without blocks, in a padded model."""
        for name, sibling, zeros in self.padding.missing(model) if self.padding is not None else ():
            self._count(sibling, 0, zeros.numel())
            yield from self.formed(name, sibling, zeros.to(sibling.device), True)

    def _count(self, like: nn.Parameter, before: int, after: int) -> None:
        """Add the bytes of a weight that grows from `before` to `after` numbers to `padding_bytes`."""
        if self.bits == 16 or not isinstance(like, QuantizedParameter):
            self.padding_bytes += (after - before) * self.dtype.itemsize
        elif self.bits == 8:
            self.padding_bytes += after - before
        else:  # a padded weight has a scale of 4 bytes per block, other weights have one byte
            blocks = 4 * (after // quantization.BLOCK) - before // quantization.BLOCK
            self.padding_bytes += (after - before) // 2 + blocks

    def formed(self, name: str, like: nn.Parameter, value: Tensor, padded: bool) -> Iterator[tuple[str, Tensor]]:
        """(name, CPU tensor) of the tensors to write for a value, joined, edited, and quantized as `like` is.

        Of a joined weight there are none before its last part. padded: in 4 bits, scales stay in 32 bits.
        """
        if name in self.joined:
            complete = self.joined.add(name, value.detach().clone())
            if complete is None:
                return
            name, value = complete
        if name in self.edits:
            value = self.edits[name](value)
        if self.bits < 16 and isinstance(like, QuantizedParameter):
            packed = (
                quantization.pack(value, like.bits, like.dtype, double=False)
                if padded
                else quantization.requantize_like(like, value)
            )
            yield from self._quantized(name, packed)
            return
        # always a copy: leaving `gathered` frees the gathered weight
        yield from self.split(name, value.to("cpu", self.dtype, copy=True))

    def _quantized(self, name: str, packed: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
        assert isinstance(packed, QuantizedParameter)
        for part, value in quantization.files(name, packed, self.dtype).items():
            yield part, value.cpu().clone()
