"""Counts the bytes that a computation needs, by running it on fake tensors, which have shapes and no content.

A storage counts from the operation that creates it until nothing refers to it. Workspace inside a kernel is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


@contextmanager
def fake() -> Iterator[None]:
    """Tensors created inside have no content."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that operations inside create and something still refers to.

    Attributes:
        now: bytes alive at this moment. Parameters of the known module count 0.
        peak: largest value of `now` so far.
    """

    def __init__(self, known: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._counted: dict[int, object] = {}
        for parameter in known.parameters():
            self._count(parameter, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, lambda t: self._count(t, t.untyped_storage().nbytes()), result)
        return result

    def _count(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._counted:
            return
        self._counted[key] = weakref.finalize(storage, self._release, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _release(self, key: int, size: int) -> None:
        self.now -= size
        del self._counted[key]


def peak_bytes(model: nn.Module, forward: Callable[[], Tensor], backward: bool) -> int:
    """Peak bytes of a forward pass, and of its backward pass if `backward`. Parameters are not counted."""
    with LiveBytes(model) as live:
        loss = forward()
        if backward:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(_drop_gradient)
            loss.backward()
    return live.peak


def _drop_gradient(parameter: Tensor) -> None:
    """Free a gradient when it is complete, as the engine does."""
    parameter.grad = None
