"""The teacher of self-distillation (METHOD.md section 7): the student's frozen weights, unmasked, with older adapters.

The teacher costs one whole copy of the trained values on every rank, and the outputs of its layers while a micro-batch
lasts.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from apt_ds.losses.task_loss import Logits
from apt_ds.models.adapter import AptLinear, Transform, gaussian_rows
from apt_ds.models.blocks import HIDDEN, Anatomy, Axis, IndexedModule
from apt_ds.models.task_heads import Head
from apt_ds.pruning.masks import Masks
from apt_ds.runtime import zero

TRANSFORM = "transform"  # the attribute of the model that holds Tr
RANK = 8


def attach(model: nn.Module, width: int, seed: int) -> None:
    """Put Tr on a model, as a module that the engine trains.

    Args:
        model: The student.
        width: Its hidden dimensions.
        seed: The same seed gives the same Tr on every rank.
    """
    like = next(model.parameters())
    lora_A = gaussian_rows(RANK, width, width, torch.Generator().manual_seed(seed)).to(like.device, like.dtype)
    lora_B = torch.zeros(width, RANK, device=like.device, dtype=like.dtype)
    setattr(model, TRANSFORM, Transform(lora_A, lora_B))


def detach(model: nn.Module) -> None:
    """Remove Tr from a model."""
    delattr(model, TRANSFORM)


def indexed_transform() -> IndexedModule:
    """How a cut of hidden dimensions indexes Tr."""
    return IndexedModule(TRANSFORM, Axis(HIDDEN), Axis(HIDDEN))


def trained_modules(model: nn.Module) -> Iterator[tuple[str, AptLinear | Head, tuple[str, ...]]]:
    """(path, module, names of its trained parameters) of adapters and task heads, in module order. Tr is left out."""
    for path, module in model.named_modules():
        if isinstance(module, AptLinear):
            yield path, module, ("lora_A", "lora_B")
        elif isinstance(module, Head):
            yield path, module, ("weight", "bias") if module.bias is not None else ("weight",)


@dataclass(frozen=True)
class ForwardOutputs:
    """What a forward pass of student or teacher gives distillation.

    Attributes:
        logits: Logits of the task.
        states: Outputs of layers by layer number, [B, L, d] each.
    """

    logits: Logits
    states: dict[int, Tensor]


def trained_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, parameter) of all that is trained, in module order. Tr is left out."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not name.startswith(f"{TRANSFORM}."):
            yield name, parameter


class Teacher:
    """The student's model with the trained values of an earlier step.

    Attributes:
        whole: Whether every weight is trained. Otherwise adapters and task heads are.
        snapshot: Those values by parameter name, unsharded, on the device.
    """

    def __init__(self, whole: bool = False) -> None:
        self.whole = whole
        self.snapshot: dict[str, Tensor] = {}

    @torch.no_grad()
    def take_snapshot(self, model: nn.Module) -> None:
        """Copy the student's trained values. Collective."""
        if self.whole:
            for name, parameter in trained_weights(model):
                with zero.gathered([parameter]):
                    self.snapshot[name] = parameter.detach().clone()
            return
        for path, module, names in trained_modules(model):
            parameters = [getattr(module, name) for name in names]
            with zero.gathered(parameters):
                for name, parameter in zip(names, parameters, strict=True):
                    self.snapshot[f"{path}.{name}"] = parameter.detach().clone()

    @contextmanager
    def as_teacher(self, engine: nn.Module, masks: Masks) -> Iterator[None]:
        """Inside the context the model is the teacher: without gradients, dropout and masks. Collective.

        engine: The engine, or a plain model.
        """
        if self.whole:
            with zero.values_replaced(engine, self.snapshot), _unmasked(zero.unwrap(engine), masks):
                yield
            return
        model = zero.unwrap(engine)
        modules = list(trained_modules(model))
        for path, module, names in modules:
            module.past = {name: self.snapshot[f"{path}.{name}"] for name in names}
        try:
            with _unmasked(model, masks):
                yield
        finally:
            for _, module, _ in modules:
                module.past = {}


@contextmanager
def _unmasked(model: nn.Module, masks: Masks) -> Iterator[None]:
    """Inside the context the model runs without gradients, dropout and masks."""
    model.eval()
    try:
        with torch.no_grad(), masks.disabled():
            yield
    finally:
        model.train()


class LayerRecorder:
    """Hooks that record the outputs of a model's layers inside `recording`."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.paths = anatomy.layers
        self._states: dict[int, Tensor] | None = None
        self._wanted: Container[int] = ()
        self._handles: list[RemovableHandle] = []

    def install(self, model: nn.Module) -> None:
        """Register the hooks."""
        assert not self._handles
        for number, path in enumerate(self.paths):
            self._handles.append(model.get_submodule(path).register_forward_hook(self._on_output(number)))

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def recording(self, layers: Container[int]) -> Iterator[dict[int, Tensor]]:
        """Record the outputs of `layers`, [B, L, d] by layer number, of the forward pass inside the context.

        Passes after the context, such as recomputation in backward, are not recorded.
        """
        states: dict[int, Tensor] = {}
        self._states, self._wanted = states, layers
        try:
            yield states
        finally:
            self._states = None

    def _on_output(self, number: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._states is not None and number in self._wanted:
                self._states[number] = output[0] if isinstance(output, tuple) else output

        return hook
