"""Soft masks on heads, neurons and hidden dimensions, as hooks on a stock model (METHOD.md sections 1, 4 and 8).

`mask_values.py` has the values. The masks of heads and neurons act where their consumer reads them, those of hidden
dimensions where the stream is written. Norms take their statistics over kept dimensions. RMSNorm: the mean over d
becomes a mean over the mask's total K, by scaling epsilon with K/d and the output with sqrt(K/d). LayerNorm, and an
RMSNorm whose input carries no mask: the mask weights mean and variance. A model under 0/1 masks therefore equals the
cut model. Outputs change continuously on the way to it.

The mask m of an expert adds log(m) to its logit in the router, so that the other experts share what it loses. The
masks of its neurons act on the slots that the router gives it. Only the choice of experts can jump on the way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from apt_ds.models.blocks import HIDDEN, Anatomy, Axis, FusedExperts, block_slices
from apt_ds.models.experts import route
from apt_ds.pruning.mask_values import MaskValues


def _times(x: Tensor, mask: Tensor) -> Tensor:
    """The product with a mask, in the dtype of `x`."""
    return (x * mask).to(x.dtype)


class Masks(MaskValues):
    """The masks of a model. Hooks apply them from `install` to `remove`."""

    def __init__(self, anatomy: Anatomy) -> None:
        super().__init__(anatomy)
        self._epsilons: list[tuple[nn.Module, float]] = []
        self._handles: list[RemovableHandle] = []

    def _take(self, values: np.ndarray) -> None:
        super()._take(values)
        for norm, epsilon in self._epsilons:
            setattr(norm, self.anatomy.epsilon, epsilon * self._kept_fraction)

    def after_cut(self, anatomy: Anatomy, keep: np.ndarray) -> None:
        """Follow a cut. keep: bool over the old blocks, those that remain. Hooks must be off."""
        assert not self._handles, "remove() the hooks before a cut"
        self.anatomy = anatomy
        self._places = dict(block_slices(anatomy.sizes))
        self.set(self.values[keep])

    def install(self, model: nn.Module, at_norms: bool = False) -> None:
        """Put the hooks on `model`. Masks that are all 1 cost nothing.

        Args:
            model: has no hooks of masks.
            at_norms: mask hidden dimensions where norms read the stream instead of where it is written. A model
                that reads its stream through RMSNorms alone computes the same. The stream keeps the removed dimensions.
        """
        assert not self._handles
        nested = {mixture.neuron_site: mixture for mixture in self.anatomy.experts}
        for number, site in enumerate(self.anatomy.sites):
            consumer = model.get_submodule(site.consumer)
            if site.kind == "expert":
                self._handles.append(consumer.register_forward_hook(self._on_router(number)))
            elif number in nested:
                self._handles.append(consumer.register_forward_pre_hook(self._on_expert_neurons(nested[number])))
            else:
                self._handles.append(consumer.register_forward_pre_hook(self._on_input(number, site.unit)))
        # a norm may write the stream: its statistics first, then its mask
        for path in self.anatomy.norms:
            norm = model.get_submodule(path)
            if at_norms:
                self._handles.append(norm.register_forward_pre_hook(self._on_input(HIDDEN, 1)))
            if self.anatomy.layer_norm:
                self._handles.append(norm.register_forward_hook(self._on_layer_norm))
            else:
                self._epsilons.append((norm, getattr(norm, self.anatomy.epsilon)))
                self._handles.append(norm.register_forward_hook(self._on_norm))
        axes = {slot.path: slot.rows for slot in self.anatomy.slots} if self.anatomy.weighted_norms else {}
        for path in self.anatomy.weighted_norms:
            axis = axes[path]
            assert axis is not None, f"{path} is no norm over blocks"
            self._handles.append(model.get_submodule(path).register_forward_hook(self._on_weighted_norm(axis)))
        for path in () if at_norms else (*self.anatomy.writers, *self.anatomy.stream_wide):
            self._handles.append(model.get_submodule(path).register_forward_hook(self._on_output))
        self.set(self.values)

    def remove(self) -> None:
        """Remove the hooks and restore the epsilon of the norms."""
        for handle in self._handles:
            handle.remove()
        for norm, epsilon in self._epsilons:
            setattr(norm, self.anatomy.epsilon, epsilon)
        self._handles, self._epsilons = [], []

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the model computes as without masks."""
        self._disabled = True
        for norm, epsilon in self._epsilons:
            setattr(norm, self.anatomy.epsilon, epsilon)
        try:
            yield
        finally:
            self._disabled = False
            for norm, epsilon in self._epsilons:
                setattr(norm, self.anatomy.epsilon, epsilon * self._kept_fraction)

    def norm_before_and_after(self, norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output of an RMSNorm over the stream x without masks, and under masks of hidden dimensions."""
        with self.disabled():
            before: Tensor = norm.forward(x)
        mask = self.mask_for(HIDDEN, x)
        masked = norm.forward(x if mask is None else x * mask)
        return before, masked * math.sqrt(self._kept_fraction)

    def _on_input(self, site: int, unit: int) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            mask = self.mask_for(site, args[0], unit)
            if mask is None:
                return None
            if self._scale is not None:
                # made from the leaf in every pass, so that recomputation in backward finds it
                factor = torch.relu(self._scale[self._places[site]]).repeat_interleave(unit)
                mask = mask * factor  # fp32, so that its gradient neither overflows nor rounds
            return (_times(args[0], mask), *args[1:])

        return hook

    def _on_router(self, site: int) -> Any:
        def hook(module: Any, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...] | None:
            logits, weights, _ = output
            mask = self.mask_for(site, logits.float())
            if mask is None:
                return None
            logits = logits + mask.log().to(logits.dtype)
            return logits, *route(logits, module.top_k, module.norm_topk_prob, weights.dtype)

        return hook

    def _on_expert_neurons(self, mixture: FusedExperts) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...] | None:
            neurons, experts, tokens = args
            mask = self.mask_for(mixture.neuron_site, neurons)
            if mask is None:
                return None
            return neurons * mask.view(-1, neurons.shape[-1]).index_select(0, experts), experts, tokens

        return hook

    def _on_output(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        mask = self.mask_for(HIDDEN, output)
        return None if mask is None else _times(output, mask)

    def _on_norm(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self._kept_fraction == 1.0 or self._disabled:
            return None
        if self._leaves is not None and (leaf := self._leaf(self._leaves, HIDDEN, output.device)) is not None:
            return _times(output, leaf.mean().sqrt())
        return output * math.sqrt(self._kept_fraction)

    def _on_weighted_norm(self, axis: Axis) -> Any:
        """The hook that turns the mean of x^2 over d entries into the mean over the mask's total K.

        The factor is sqrt((mean of x^2 + eps) / (sum of m x^2 / K + eps)). The output itself takes no mask.
        """

        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            mask = self.mask_for(axis.site, args[0], axis.unit)
            # nothing reads a norm whose blocks are all masked
            if mask is None or not self._values_of(axis.site).any():
                return None
            square, epsilon = args[0].float().square(), getattr(module, self.anatomy.epsilon)
            weight = mask.float() / mask.float().sum()
            factor = torch.sqrt((square.mean(-1, keepdim=True) + epsilon) / (square @ weight + epsilon).unsqueeze(-1))
            return (output * factor).to(output.dtype)

        return hook

    def _on_layer_norm(self, module: nn.LayerNorm, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        mask = self.mask_for(HIDDEN, args[0])
        if mask is None:
            return None
        x, weight = args[0].float(), mask.float() / mask.float().sum()
        centred = x - (x * weight).sum(-1, keepdim=True)
        variance = (centred.square() * weight).sum(-1, keepdim=True)
        scaled = centred * torch.rsqrt(variance + module.eps)
        scaled = scaled * module.weight.float()
        return (scaled if module.bias is None else scaled + module.bias.float()).to(output.dtype)
