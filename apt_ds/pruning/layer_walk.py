"""Runs a model layer by layer over the same batches, so that changing a layer costs no pass over those before it.

No engine may be on the model. Under ZeRO-3 one layer is gathered at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from apt_ds.models.unwrap import pretrained_model
from apt_ds.runtime import heartbeat, zero


@dataclass(frozen=True)
class WalkBatch:
    """What a walk does with one batch.

    Attributes:
        run: calls the model without its head, by (base model).
        counted: bool [tokens], the tokens that count, on the device.
        half: int64 [tokens], 0 or 1: the half of the tokens that each belongs to, on the device.
    """

    run: Callable[[nn.Module], Any]
    counted: Tensor
    half: Tensor


class _ReachedError(Exception):
    """Ends a forward pass once the input that it is for has been seen."""


class LayerWalk:
    """The batches of this rank on their way through the layers. All methods are collective.

    It keeps the input of the current layer of every batch, and the other arguments of all layers.

    Args:
        model: without an engine. Masks may be on it.
        layers: paths of its layers, in order. Each reads what the one before returns.
        batches: this rank's batches. All ranks have as many.
    """

    def __init__(self, model: nn.Module, layers: tuple[str, ...], batches: list[WalkBatch]) -> None:
        self.model, self.batches = model, batches
        self._layers = [model.get_submodule(path) for path in layers]
        self._inputs: list[Tensor] = []
        self._arguments: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []
        self._record()

    def _record(self) -> None:
        """Take the input of the first layer and the other arguments of all layers, without running a layer."""
        base = pretrained_model(self.model).base_model
        inside = {id(p) for layer in self._layers for p in layer.parameters()}
        with zero.gathered(p for p in base.parameters() if id(p) not in inside):
            for batch in self.batches:
                heartbeat.progress()
                calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
                states: list[Tensor] = []
                with self._layers_skipped(calls, states):
                    batch.run(base)
                self._inputs.append(states[0])
                self._arguments.append(calls)

    @contextmanager
    def _layers_skipped(
        self, calls: list[tuple[tuple[Any, ...], dict[str, Any]]], states: list[Tensor]
    ) -> Iterator[None]:
        """Inside, layers return their input and append their arguments to the lists."""

        def skip(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            states.append(hidden)
            calls.append((args, kwargs))
            return hidden

        for layer in self._layers:
            vars(layer)["forward"] = skip
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward

    def inputs_of(self, number: int, consumer: nn.Module, take: Callable[[Tensor, WalkBatch], None]) -> None:
        """Give `take` what a module inside layer `number` reads, before masks: [tokens, d] of every batch.

        The pass ends there: the rest of the layer is not computed.
        """
        batches = iter(self.batches)

        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            take(args[0].reshape(-1, args[0].shape[-1]), next(batches))
            raise _ReachedError

        handle = consumer.register_forward_pre_hook(hook, prepend=True)
        try:
            with self._gathered(number):
                for index in range(len(self.batches)):
                    try:
                        self._run(number, index)
                    except _ReachedError:
                        continue
        finally:
            handle.remove()

    def advance(self, number: int) -> None:
        """Replace the inputs of layer `number` by its outputs."""
        with self._gathered(number):
            for index in range(len(self.batches)):
                self._inputs[index] = self._run(number, index)

    @contextmanager
    def _gathered(self, number: int) -> Iterator[None]:
        with zero.gathered(self._layers[number].parameters()):
            yield

    def _run(self, number: int, index: int) -> Tensor:
        heartbeat.progress()
        args, kwargs = self._arguments[index][number]
        output = self._layers[number](self._inputs[index], *args, **kwargs)
        assert isinstance(output, torch.Tensor), f"layer {number} returns a {type(output).__name__}"
        return output
