"""The teacher within the student: the same frozen weights, masks off, what is trained as it once was (section 7).

It costs the values of adapters and heads once more, and its layers' outputs while a micro-batch lasts.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from apt_ds.losses.task_losses import Logits
from apt_ds.models.adapter import AptLinear, Transform, gaussian_rows
from apt_ds.models.blocks import HIDDEN, Anatomy, Axis, IndexedModule
from apt_ds.models.task_heads import Head
from apt_ds.pruning.masks import Masks
from apt_ds.runtime import zero

TRANSFORM = "transform"  # where it sits on the model
RANK = 8


def attach(model: nn.Module, width: int, seed: int) -> None:
    """Put Tr on the model, where the engine trains it. The same on all ranks."""
    like = next(model.parameters())
    a = gaussian_rows(RANK, width, width, torch.Generator().manual_seed(seed)).to(like.device, like.dtype)
    setattr(model, TRANSFORM, Transform(a, torch.zeros(width, RANK, device=like.device, dtype=like.dtype)))


def detach(model: nn.Module) -> None:
    """Take Tr off the model."""
    delattr(model, TRANSFORM)


def slot() -> IndexedModule:
    """How a cut indexes Tr."""
    return IndexedModule(TRANSFORM, Axis(HIDDEN), Axis(HIDDEN))


def tuned(model: nn.Module) -> Iterator[tuple[str, AptLinear | Head, tuple[str, ...]]]:
    """(path, module, names of its trained parameters) in module order, Tr left out."""
    for path, module in model.named_modules():
        if isinstance(module, AptLinear):
            yield path, module, ("lora_A", "lora_B")
        elif isinstance(module, Head):
            yield path, module, ("weight", "bias")


class Outputs(NamedTuple):
    """What a model makes of a micro-batch: its logits, and the hidden states of layers by number, [B, L, d] each."""

    logits: Logits
    states: dict[int, Tensor]


class Teacher:
    """snapshot: what was trained when it was last taken, by parameter name, whole, on the device."""

    def __init__(self) -> None:
        self.snapshot: dict[str, Tensor] = {}

    @torch.no_grad()
    def learn(self, model: nn.Module) -> None:
        """Take over what the student has learnt. Collective."""
        for path, module, names in tuned(model):
            own = [getattr(module, name) for name in names]
            with zero.gathered(own):
                self.snapshot |= {f"{path}.{n}": p.detach().clone() for n, p in zip(names, own, strict=True)}

    @contextmanager
    def as_teacher(self, model: nn.Module, masks: Masks) -> Iterator[None]:
        """Inside, the model is the teacher: no gradient, no dropout, no mask."""
        modules = list(tuned(model))
        for path, module, names in modules:
            module.past = {name: self.snapshot[f"{path}.{name}"] for name in names}
        model.eval()
        try:
            with torch.no_grad(), masks.disabled():
                yield
        finally:
            model.train()
            for _, module, _ in modules:
                module.past = {}


class Watcher:
    """Hooks that keep the outputs of all layers, [B, L, d] by number, while `seeing`."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.layers = anatomy.layers
        self._states: dict[int, Tensor] | None = None
        self._wanted: Container[int] = ()
        self._handles: list[RemovableHandle] = []

    def install(self, model: nn.Module) -> None:
        """Put the hooks on."""
        assert not self._handles
        for number, path in enumerate(self.layers):
            self._handles.append(model.get_submodule(path).register_forward_hook(self._on_output(number)))

    def remove(self) -> None:
        """Take them off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def seeing(self, layers: Container[int]) -> Iterator[dict[int, Tensor]]:
        """Outputs of `layers` in the pass inside; those of later passes (recomputed in backward) are not kept."""
        self._states, self._wanted = (states := {}), layers
        try:
            yield states
        finally:
            self._states = None

    def _on_output(self, number: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._states is not None and number in self._wanted:
                self._states[number] = output[0] if isinstance(output, tuple) else output

        return hook
