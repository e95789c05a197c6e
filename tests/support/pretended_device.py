"""PyTorch's `meta` device in the place of a GPU: an operation on tensors of two devices raises, as a GPU's does.

Tensors of this device have shapes and no content. The test chooses the content that the host reads.
PyTorch itself lets some operations on `meta` take tensors of the host, such as products and embeddings. `OneDevice`
refuses them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")
ATEN = torch.ops.aten
# operations that move content from one device to the other
COPIES = {ATEN._to_copy, ATEN.copy_, ATEN._copy_from}


class PlacementError(RuntimeError):
    """An operation got tensors of the host and of the device."""


def tensors_of(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among an operation's arguments, and in lists among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_of(value)


class OneDevice(TorchDispatchMode):
    """Inside, an operation takes tensors of one device. The host may read tensors of the device.

    A number of the host, which is a tensor without dimensions, may meet tensors of the device, as on a GPU.

    Attributes:
        content: what every element of the device appears to be.
        reads: how often the host read from the device.
    """

    def __init__(self, content: float = 1.0) -> None:
        super().__init__()
        self.content, self.reads = content, 0
        self._sent_masks: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        given = list(tensors_of(args)) + list(tensors_of(kwargs.values()))
        on_device = [tensor for tensor in given if tensor.is_meta]
        if packet in COPIES:
            return self._copy(func, args, kwargs)
        if on_device and any(not tensor.is_meta and tensor.dim() for tensor in given):
            places = ", ".join(f"{tensor.device.type} {tuple(tensor.shape)}" for tensor in given)
            raise PlacementError(f"{packet}: tensors of two devices: {places}")
        if not on_device:
            return func(*args, **kwargs)
        if packet is ATEN._local_scalar_dense:
            self.reads += 1
            return torch.full((), self.content).to(args[0].dtype).item()
        if packet is ATEN.nonzero:
            self.reads += 1
            return self._mask(args[0]).nonzero().to(META)
        if packet is ATEN.index:
            args = (args[0], [self._positions(index) for index in args[1]])
        return func(*args, **kwargs)

    def _copy(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Move content. What comes from the device is `content`."""
        if func.overloadpacket is ATEN._to_copy:
            source, target = args[0], kwargs.get("device") or args[0].device
            if source.is_meta and target.type != "meta":
                self.reads += 1
                dtype = kwargs.get("dtype") or source.dtype
                return torch.full(source.shape, self.content, device=target).to(dtype)
            copy = func(*args, **kwargs)
            if copy.is_meta and not source.is_meta and source.dtype == torch.bool:
                self._sent_masks[id(copy)] = copy, source.clone()
            return copy
        target, source = args[:2]
        if source.is_meta and not target.is_meta:
            self.reads += 1
            return target.fill_(self.content)
        return func(*args, **kwargs)

    def _mask(self, mask: Tensor) -> Tensor:
        """The content of a mask on the device: what the host sent, or `content` of a mask that was computed."""
        sent = self._sent_masks.get(id(mask))
        return sent[1] if sent is not None else torch.full(mask.shape, bool(self.content))

    def _positions(self, index: Tensor | None) -> Tensor | None:
        """An index as it is, and a mask of one dimension as the positions that it selects."""
        if index is None or index.dtype != torch.bool:
            return index
        self.reads += 1
        return self._mask(index).nonzero().squeeze(1).to(META)
