"""Runs a model layer by layer over the same batches, so that changing a layer costs no pass over those before it.

An encoder and a decoder are two stacks of layers, one after the other. What the model computes before a stack, such as
embeddings or the encoder's last norm, is computed once, when the walk reaches the stack.

No engine may be on the model. Under ZeRO-3 one layer is gathered at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from apt_ds.models.blocks import Anatomy
from apt_ds.models.unwrap import pretrained_model
from apt_ds.runtime import heartbeat, zero


@dataclass(frozen=True)
class WalkTokens:
    """The tokens of a batch, all rows after each other.

    Attributes:
        counted: bool [tokens], the tokens that count, on the device.
        half: int64 [tokens], 0 or 1: the half of the tokens that each belongs to, on the device.
    """

    counted: Tensor
    half: Tensor


@dataclass(frozen=True)
class WalkBatch:
    """What a walk does with one batch.

    Attributes:
        run: calls the model without its head, by (base model).
        tokens: what the first stack reads.
        decoder_tokens: what a decoder reads after its encoder. None: there is one stack.
    """

    run: Callable[[nn.Module], Any]
    tokens: WalkTokens
    decoder_tokens: WalkTokens | None = None


class _ReachedError(Exception):
    """Ends a forward pass once the input that it is for has been seen."""


@dataclass
class _Call:
    """The arguments of a layer beside its input."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class LayerWalk:
    """The batches of this rank on their way through the layers. All methods are collective.

    It keeps the input of the current layer of every batch, and the other arguments of all layers of its stack. Layers
    that return more than their output, such as T5's with the position bias, hand the rest to the next layer.

    Args:
        model: without an engine. Masks may be on it.
        anatomy: its blocks, with the paths of its layers in order.
        batches: this rank's batches. All ranks have as many.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, batches: list[WalkBatch]) -> None:
        self.model, self.batches = model, batches
        self._layers = [model.get_submodule(path) for path in anatomy.layers]
        prefix = anatomy.decoder_prefix
        self._in_decoder = [bool(prefix) and path.startswith(prefix) for path in anatomy.layers]
        # stand for what a layer returns beside its output, until it runs
        self._markers = [[torch.empty(0) for _ in range(anatomy.layer_outputs - 1)] for _ in self._layers]
        self._inputs: list[Tensor] = [torch.empty(0) for _ in batches]
        self._rest: list[tuple[Any, ...]] = [() for _ in batches]
        self._calls: list[dict[int, _Call]] = [{} for _ in batches]
        self._record(0)

    def _record(self, first: int) -> None:
        """Take the input of the stack that begins with layer `first` and the other arguments of its layers.

        No layer runs. Those of an earlier stack return what the walk has found.
        """
        base = pretrained_model(self.model).base_model
        inside = {id(p) for layer in self._layers for p in layer.parameters()}
        with zero.gathered(p for p in base.parameters() if id(p) not in inside):
            for index, batch in enumerate(self.batches):
                heartbeat.progress()
                with self._layers_skipped(first, index), suppress(_ReachedError):
                    batch.run(base)

    @contextmanager
    def _layers_skipped(self, first: int, index: int) -> Iterator[None]:
        """Inside, layers return their input. The input and the arguments of a batch are taken."""
        layer_input = self._inputs[index]
        self._calls[index] = {}

        def forward_of(number: int) -> Callable[..., Any]:
            def skip(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
                if number < first:
                    return self._with_rest(layer_input, [None] * len(self._markers[number]))
                if number == first:
                    self._inputs[index] = hidden
                self._calls[index][number] = _Call(
                    tuple(map(_lasting, args)), {key: _lasting(value) for key, value in kwargs.items()}
                )
                if number + 1 == len(self._layers) or self._begins_stack(number + 1):
                    raise _ReachedError
                return self._with_rest(hidden, self._markers[number])

            return skip

        for number, layer in enumerate(self._layers):
            vars(layer)["forward"] = forward_of(number)
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward

    @staticmethod
    def _with_rest(output: Tensor, rest: list[Any]) -> Any:
        """What a layer returns: a tensor, or a tuple that begins with it."""
        return (output, *rest) if rest else output

    def _begins_stack(self, number: int) -> bool:
        return number > 0 and self._in_decoder[number] != self._in_decoder[number - 1]

    def inputs_of(self, number: int, module: nn.Module, take: Callable[[Tensor, WalkTokens], None]) -> None:
        """Give `take` what a module inside layer `number` reads, before masks: [tokens, d] of every batch.

        The pass ends there: the rest of the layer is not computed.
        """
        batches = iter(self.batches)

        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            take(args[0].reshape(-1, args[0].shape[-1]), self._tokens(number, next(batches)))
            raise _ReachedError

        handle = module.register_forward_pre_hook(hook, prepend=True)
        try:
            with self._gathered(number):
                for index in range(len(self.batches)):
                    with suppress(_ReachedError):
                        self._run(number, index)
        finally:
            handle.remove()

    def _tokens(self, number: int, batch: WalkBatch) -> WalkTokens:
        """The tokens that layer `number` reads."""
        if not self._in_decoder[number]:
            return batch.tokens
        assert batch.decoder_tokens is not None, "a decoder has tokens of its own"
        return batch.decoder_tokens

    def run_once(self, number: int) -> None:
        """Run layer `number` over the first batch, for hooks."""
        with self._gathered(number):
            self._run(number, 0)

    def advance(self, number: int) -> None:
        """Replace the inputs of layer `number` by those of the next layer."""
        with self._gathered(number):
            for index in range(len(self.batches)):
                self._inputs[index], *rest = self._run(number, index)
                self._rest[index] = tuple(rest)
        if self._begins_stack(number + 1):
            self._record(number + 1)

    @contextmanager
    def _gathered(self, number: int) -> Iterator[None]:
        with zero.gathered(self._layers[number].parameters()):
            yield

    def _run(self, number: int, index: int) -> tuple[Any, ...]:
        """The output of a layer for a batch, and what else it returns."""
        heartbeat.progress()
        call, rest = self._calls[index][number], self._rest[index]
        known = {}
        if number > 0:
            known = {id(marker): value for marker, value in zip(self._markers[number - 1], rest, strict=False)}
        args = [known.get(id(value), value) for value in call.args]
        kwargs = {key: known.get(id(value), value) for key, value in call.kwargs.items()}
        output = self._layers[number](self._inputs[index], *args, **kwargs)
        result = output if isinstance(output, tuple) else (output,)
        expected = 1 + len(self._markers[number])
        assert len(result) == expected, f"layer {number} returns {len(result)} values instead of {expected}"
        return result


def _lasting(value: Any) -> Any:
    """An argument that a layer may read later. A parameter may be released until then, so it is copied."""
    return value.detach().clone() if isinstance(value, nn.Parameter) else value
