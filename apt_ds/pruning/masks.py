"""Soft masks on heads, neurons and hidden dimensions, worn by a stock model as hooks (sections 1, 4, 8).

Heads and neurons are masked where their consumer reads them, hidden dimensions where the stream is written.
Norms take their statistics over kept dimensions. RMSNorm: the mean over d becomes a sum over the mask's total K, by
scaling epsilon with K/d and the output with sqrt(K/d). LayerNorm: mean and variance are weighted with the mask. A
model under 0/1 masks therefore equals the cut one, and nothing jumps on the way there.
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

from apt_ds.config.schedules import SNAP
from apt_ds.models.blocks import HIDDEN, Anatomy, block_slices


class Masks:
    """The soft state of every block: `values`, float64 [blocks] on the host, the same on all ranks."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self.values = np.ones(anatomy.sizes.total())
        self._worn: dict[int, Tensor] = {}
        self._kept = 1.0
        self._epsilons: list[tuple[nn.Module, float]] = []
        self._handles: list[RemovableHandle] = []
        self._lifted = False

    def move_towards(self, keep: np.ndarray, step: float) -> None:
        """Move by `step` towards 1 where `keep` (bool [blocks]), towards 0 elsewhere. Both ends are reached exactly."""
        moved = self.values + np.where(keep, step, -step)
        # 100 steps of 0.01 must reach 0, not 1e-16
        near = SNAP * step
        self.set(np.where(moved < near, 0.0, np.where(moved > 1.0 - near, 1.0, moved)))

    def set(self, values: np.ndarray) -> None:
        """Take `values` (float [blocks], 0 to 1) as the masks."""
        self.values = values.copy()
        self._worn.clear()
        hidden = self.values[dict(block_slices(self.anatomy.sizes))[HIDDEN]]
        self._kept = float(hidden.mean())
        for norm, epsilon in self._epsilons:
            setattr(norm, self.anatomy.epsilon, epsilon * self._kept)

    def after_cut(self, anatomy: Anatomy, keep: np.ndarray) -> None:
        """Follow a cut: `keep` (bool over the old blocks) are those that remain. Hooks must be off."""
        assert not self._handles, "remove() the hooks before a cut"
        self.anatomy = anatomy
        self.set(self.values[keep])

    def arrived(self, keep: np.ndarray) -> bool:
        """Whether every mask is exactly 1 where `keep` (bool [blocks]), and exactly 0 elsewhere."""
        return bool((self.values == keep).all())

    def fully_masked(self) -> np.ndarray:
        """Blocks whose mask has reached 0, bool [blocks]."""
        return self.values == 0.0

    def install(self, model: nn.Module) -> None:
        """Put the hooks on `model`. Masks that are all ones cost nothing."""
        assert not self._handles
        for number, site in enumerate(self.anatomy.sites):
            consumer = model.get_submodule(site.consumer)
            self._handles.append(consumer.register_forward_pre_hook(self._on_input(number, site.unit)))
        # a norm may write the stream: its statistics first, then its mask
        for path in self.anatomy.norms:
            norm = model.get_submodule(path)
            if self.anatomy.layer_norm:
                self._handles.append(norm.register_forward_hook(self._on_layer_norm))
            else:
                self._epsilons.append((norm, getattr(norm, self.anatomy.epsilon)))
                self._handles.append(norm.register_forward_hook(self._on_norm))
        for path in (*self.anatomy.writers, *self.anatomy.stream_wide):
            self._handles.append(model.get_submodule(path).register_forward_hook(self._on_output))
        self.set(self.values)

    def remove(self) -> None:
        """Take the hooks off and put the norms' epsilon back."""
        for handle in self._handles:
            handle.remove()
        for norm, epsilon in self._epsilons:
            setattr(norm, self.anatomy.epsilon, epsilon)
        self._handles, self._epsilons = [], []

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the model is as if it wore no masks."""
        self._lifted = True
        for norm, epsilon in self._epsilons:
            setattr(norm, self.anatomy.epsilon, epsilon)
        try:
            yield
        finally:
            self._lifted = False
            for norm, epsilon in self._epsilons:
                setattr(norm, self.anatomy.epsilon, epsilon * self._kept)

    def mask_for(self, site: int, like: Tensor, unit: int = 1) -> Tensor | None:
        """Mask of a site's columns, `unit` per block, in the dtype and place of `like`; None when all ones."""
        if self._lifted:
            return None
        if site not in self._worn:
            values = self.values[dict(block_slices(self.anatomy.sizes))[site]]
            if (values == 1.0).all():
                values = values[:0]
            worn = torch.from_numpy(values).to(like.device, like.dtype, non_blocking=True)
            self._worn[site] = worn.repeat_interleave(unit)
        worn = self._worn[site]
        return worn if worn.numel() else None

    def _on_input(self, site: int, unit: int) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            mask = self.mask_for(site, args[0], unit)
            return None if mask is None else (args[0] * mask, *args[1:])

        return hook

    def _on_output(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        mask = self.mask_for(HIDDEN, output)
        return None if mask is None else output * mask

    def _on_norm(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        return None if self._kept == 1.0 or self._lifted else output * math.sqrt(self._kept)

    def _on_layer_norm(self, module: nn.LayerNorm, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        mask = self.mask_for(HIDDEN, args[0])
        if mask is None:
            return None
        x, weight = args[0].float(), mask.float() / mask.float().sum()
        centred = x - (x * weight).sum(-1, keepdim=True)
        variance = (centred.square() * weight).sum(-1, keepdim=True)
        scaled = centred * torch.rsqrt(variance + module.eps)
        return (scaled * module.weight.float() + module.bias.float()).to(output.dtype)
