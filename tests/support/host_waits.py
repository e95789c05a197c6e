"""Counts where the host waits for a device, on a machine without one.

On the CPU, host and device share one memory. So the operations decide: weights, a batch that was sent, and tensors that
a model makes in its forward pass count as the device's, and so does all that is computed from them. The host waits when
it reads the content of such a tensor.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from apt_ds.data.batching import Batch
from apt_ds.runtime import transfer

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal", "item", "is_nonzero"}
COPIES = {"cpu", "tolist", "numpy"}


class Wait(NamedTuple):
    """A read of the device by the host.

    Attributes:
        op: the operation that read.
        where: the innermost file outside of torch, and its line.
    """

    op: str
    where: str


class Device(TorchDispatchMode):
    """Follows given tensors, and all that is computed from them.

    Attributes:
        waits: the reads of their content.
        inside: whether tensors that are made from no other tensor are the device's.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.tensors: dict[int, Tensor] = {}
        self.waits: list[Wait] = []
        self.inside = False
        self.copies = Copies(self)
        for tensor in known:
            self.follow(tensor)

    def follow(self, tensor: Tensor) -> Tensor:
        """Count a tensor as the device's. It is kept alive, so that its address is not used again."""
        self.tensors[tensor.untyped_storage()._cdata] = tensor
        return tensor

    def has(self, tensor: Tensor) -> bool:
        """Whether a tensor is the device's."""
        return tensor.untyped_storage()._cdata in self.tensors

    def wait(self, op: str) -> None:
        """Note that the host waits."""
        frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and __file__ != f.filename]
        self.waits.append(Wait(op, f"{frames[-1].filename}:{frames[-1].lineno}"))

    def __enter__(self) -> Device:
        self.copies.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.copies.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        result = func(*args, **(kwargs or {}))
        on_device = any(self.has(tensor) for tensor in given)
        if on_device:
            name = func.overloadpacket.__name__
            by_mask = name in ("index", "index_put_") and any(t.dtype == torch.bool for t in given[1:])
            if name in WAITING or by_mask:
                self.wait(name)
        if on_device or (self.inside and not given):
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self.follow(leaf)
        return result


class Copies(TorchFunctionMode):
    """Sees copies to the host. No operator shows them on the CPU. The copies are the host's."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in COPIES and isinstance(args[0], Tensor) and self.device.has(args[0]):
            self.device.wait(name)
            # made outside of the mode, so that it is not followed
            with torch.utils._python_dispatch._disable_current_modes():
                return func(args[0].detach().clone())
        return func(*args, **(kwargs or {}))


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, model: nn.Module, known: list[Tensor]) -> Iterator[Device]:
    """Weights of `model`, `known`, all that is sent and all that the model makes are the device's."""
    device = Device([*model.parameters(), *model.buffers(), *known])

    def sent(tensor: Tensor, place: Any) -> Tensor:
        return device.follow(tensor.clone())

    def to(batch: Batch, place: Any) -> Batch:
        moved: dict[str, Any] = {k: sent(v, place) for k, v in vars(batch).items() if isinstance(v, Tensor)}
        return replace(batch, **moved)

    original = transfer.sent
    with monkeypatch.context() as patch:
        for module in [m for name, m in sys.modules.items() if name.startswith("apt_ds.")]:
            if getattr(module, "sent", None) is original:
                patch.setattr(module, "sent", sent)
        patch.setattr(Batch, "to", to)
        handles = [
            model.register_forward_pre_hook(lambda *_: setattr(device, "inside", True)),
            model.register_forward_hook(lambda *_: setattr(device, "inside", False)),
        ]
        try:
            with device:
                yield device
        finally:
            for handle in handles:
                handle.remove()
