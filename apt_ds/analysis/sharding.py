"""How ZeRO divides the weights of a model over ranks and memories. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from apt_ds.analysis.memory_trace import Footprint

MOMENTS = 8  # bytes of Adam's moments per trained element


class Bytes(NamedTuple):
    """Bytes on the device and on the host."""

    device: int = 0
    host: int = 0

    def plus(self, *others: Bytes) -> Bytes:
        """The sum."""
        return Bytes(self.device + sum(o.device for o in others), self.host + sum(o.host for o in others))


class Layout(NamedTuple):
    """What a run adds to the model and the DeepSpeed configuration.

    Attributes:
        world: number of ranks.
        item: bytes of a weight in the dtype of the run.
        stored: bytes of a weight in the model's files.
        kept: fraction of all weights that remain after the last cut.
        moments: bytes of Adam's moments per trained element. 0 where no step comes before the cut.
        on_cpu: whether the device is the host.
        repair: bytes of a repair beside the weights that the rank stores (`repair_memory.py`). 0: nothing is repaired.
    """

    world: int
    item: int
    stored: int
    kept: float = 1.0
    moments: float = MOMENTS
    on_cpu: bool = False
    repair: int = 0


@dataclass(frozen=True)
class Sharding:
    """How ZeRO divides and places the weights of a model, from a resolved DeepSpeed configuration."""

    model: Footprint
    zero: dict[str, Any]
    layout: Layout

    @property
    def stage(self) -> int:
        """ZeRO stage, 0 to 3."""
        return int(self.zero.get("stage", 0))

    @property
    def total(self) -> int:
        """Elements of all weights."""
        return sum(w.numel for w in self.model.weights)

    @property
    def trained(self) -> int:
        """Elements of all trained weights."""
        return sum(w.numel for w in self.model.weights if w.trained)

    @property
    def own(self) -> int:
        """Elements of all weights that one rank stores."""
        return self._share(self.total) if self.stage == 3 else self.total

    @property
    def own_trained(self) -> int:
        """Elements of trained weights that one rank stores."""
        return self._share(self.trained) if self.stage == 3 else self.trained

    @property
    def updated(self) -> int:
        """Trained elements whose optimizer state one rank stores."""
        return self._share(self.trained) if self.stage else self.trained

    @property
    def scales(self) -> int:
        """Bytes of the scales of quantized weights. Every rank stores all of them."""
        return sum(w.scales for w in self.model.weights)

    @property
    def dequantized(self) -> int:
        """Elements of the largest quantized weight, which one product dequantizes. 0 where none is quantized."""
        return max(w.full for w in self.model.weights)

    @property
    def parameters(self) -> int:
        """Parameters that the weights stand for, quantized ones included."""
        return sum(w.full or w.numel for w in self.model.weights)

    @property
    def largest(self) -> int:
        """Bytes of the largest module, or of the largest dequantized weight, in the dtype of the run."""
        return max(self.model.largest, self.dequantized) * self.layout.item

    def param_bytes(self, size: int) -> Bytes:
        """`size` bytes of parameters, where the configuration places parameters."""
        offloaded = self.stage == 3 and "offload_param" in self.zero
        return Bytes(0, size) if offloaded else Bytes(size)

    def _share(self, elements: int) -> int:
        return -(-elements // self.layout.world)
