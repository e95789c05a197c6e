"""Outlier-aware salience of every block, from activations and their gradients (section 3).

Per optimizer step and over the global batch A = sum |H|, G = sum |dL/dH| for every dimension; a block's score is
the sum of A * G over its dimensions (a head) or over all places that write the stream (a hidden dimension), so
that scores of blocks of any size compare per parameter. The outlier term adds sqrt(max(excess kurtosis, 0)) of the
block's contributions. Departure: `normalized` divides both terms by their mean over the kind, as the method
says, and then gives the sum the scale of the first term back, since kinds would not compare otherwise.

A tap sums |x| in the forward pass and hands the sum to the gradient hook of x, which alone commits both: it
fires once per micro-batch, whatever kind of gradient checkpointing runs the forward pass twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from apt_ds import zero
from apt_ds.adapter import AptLinear
from apt_ds.anatomy import HIDDEN, Anatomy, spans


class Salience:
    """Taps and moving averages.

    average: fp32 [blocks], the moving average of scores; masses: fp32 [2, dimensions], A and G of this step;
    stale: whether the outlier term must be measured before the next update.
    """

    def __init__(self, anatomy: Anatomy, decay: float, outlier: str, device: torch.device) -> None:
        self.decay, self.outlier, self.device = decay, outlier, device
        self._handles: list[RemovableHandle] = []
        self._valid: Tensor | None = None
        self._resize(anatomy)
        self.average = torch.zeros(anatomy.sizes.total(), device=device)

    def _resize(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        sizes = anatomy.sizes
        offsets = dict(spans(sizes))
        owners, widths = [], []
        for number, site in enumerate(anatomy.sites):
            block = torch.arange(offsets[number].start, offsets[number].stop)
            owners.append(block.repeat_interleave(site.unit))
        hidden = torch.arange(offsets[HIDDEN].start, offsets[HIDDEN].stop)
        owners += [hidden] * len(anatomy.writers)
        widths = [len(owner) for owner in owners]
        self._owner = torch.cat(owners).to(self.device)
        self._places = list(torch.arange(len(self._owner)).split(widths))
        self._places = [slice(int(p[0]), int(p[-1]) + 1) for p in self._places]
        self.masses = torch.zeros(2, len(self._owner), device=self.device)
        self.outliers = torch.zeros(sizes.total(), device=self.device)
        self.stale = self.outlier != "off"
        self._kind = torch.from_numpy(block_kinds(anatomy)).to(self.device)

    def install(self, model: nn.Module) -> None:
        """Put the taps on `model`: after `Masks.install`, so that they see masked activations."""
        assert not self._handles
        for number, site in enumerate(self.anatomy.sites):
            tap = self._tap(self._places[number])
            self._handles.append(model.get_submodule(site.consumer).register_forward_pre_hook(tap_input(tap)))
        for number, path in enumerate(self.anatomy.writers, start=len(self.anatomy.sites)):
            tap = self._tap(self._places[number])
            self._handles.append(model.get_submodule(path).register_forward_hook(tap_output(tap)))

    def remove(self) -> None:
        """Take the taps off: from here on scoring costs nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def begin(self, attention_mask: Tensor, dtype: torch.dtype) -> None:
        """Before each scored forward pass: which tokens count, [batch, length], 1 or 0."""
        self._valid = attention_mask.reshape(1, -1).to(dtype)

    def end(self) -> None:
        """After the backward pass: forward passes from here on (evaluation) are not scored."""
        self._valid = None

    def _tap(self, place: slice) -> Any:
        def tap(x: Tensor) -> None:
            if self._valid is None or not torch.is_grad_enabled():
                return
            if not x.requires_grad:
                x.requires_grad_()
            valid = self._valid
            with torch.no_grad():
                activation = column_mass(valid, x)

            def commit(gradient: Tensor) -> None:
                self.masses[0, place] += activation
                self.masses[1, place] += column_mass(valid, gradient)

            x.register_hook(commit)

        return tap

    def measure_outliers(self, model: nn.Module) -> None:
        """Read the outlier term from the weights, frozen and tuned part together, once after every cut.

        Gathers one weight at a time: collective under stage 3. Uses this step's activation masses, already summed
        over ranks.
        """
        self.stale = False
        where = dict(spans(self.anatomy.sizes))
        for number, site in enumerate(self.anatomy.sites):
            mass = self.masses[0, self._places[number]]
            with effective_weight(model.get_submodule(site.consumer)) as weight:
                self.outliers[where[number]] = consumer_outliers(weight, site.unit, mass)
        for path in self.anatomy.readers:
            with effective_weight(model.get_submodule(path)) as weight:
                self.outliers[where[HIDDEN]] += reader_outliers(weight) / len(self.anatomy.readers)

    def update(self, gradient_scale: float) -> None:
        """Turn this step's masses (already summed over ranks) into scores and move the average.

        gradient_scale: what the hooks' gradients must be multiplied with to be those of the global mean loss
        (undoes loss scaling and averaging over ranks), so that scores do not depend on the split.
        """
        first_order = torch.zeros_like(self.average)
        first_order.index_add_(0, self._owner, self.masses[0] * self.masses[1] * gradient_scale)
        self.average.mul_(self.decay).add_(self.combine(first_order), alpha=1 - self.decay)
        self.masses.zero_()

    def discard(self) -> None:
        """Forget this step's masses (a non-finite loss)."""
        self.masses.zero_()

    def combine(self, first_order: Tensor) -> Tensor:
        """First-order term [blocks] plus the outlier term, in one of the two ways of section 3."""
        if self.outlier == "off":
            return first_order
        if self.outlier == "literal":
            return first_order + self.outliers
        counts = torch.bincount(self._kind, minlength=3).clamp(min=1)
        mean = torch.zeros(3, device=self.device).index_add_(0, self._kind, first_order) / counts
        mean_outlier = torch.zeros(3, device=self.device).index_add_(0, self._kind, self.outliers) / counts
        weight = mean / mean_outlier.clamp(min=1e-12)
        return first_order + weight[self._kind] * self.outliers

    def scores(self) -> np.ndarray:
        """The moving average, float64 [blocks] on the host."""
        return self.average.double().cpu().numpy()

    def after_cut(self, anatomy: Anatomy, keep: np.ndarray) -> None:
        """Follow a cut: averages keep their blocks, the outlier term must be measured again. Taps must be off."""
        assert not self._handles, "remove() the taps before a cut"
        average = self.average[torch.from_numpy(keep).to(self.device)]
        self._resize(anatomy)
        self.average = average


def block_kinds(anatomy: Anatomy) -> np.ndarray:
    """0 head, 1 neuron, 2 hidden for every block, int64 [blocks]."""
    number = {"head": 0, "neuron": 1, "hidden": 2}
    kinds = np.empty(anatomy.sizes.total(), dtype=np.int64)
    for site, span in spans(anatomy.sizes):
        kinds[span] = number[anatomy.kind(site)]
    return kinds


def column_mass(valid: Tensor, x: Tensor) -> Tensor:
    """Sum of |x| over counted tokens: [1, tokens] x [..., tokens, d] -> fp32 [d]. One fused reduction."""
    return (valid.to(x.dtype) @ x.detach().abs().reshape(-1, x.shape[-1])).float().squeeze(0)


@contextmanager
def effective_weight(module: nn.Linear) -> Iterator[Tensor]:
    """The weight with its adapter's part, [out, in], gathered for as long as the context lasts."""
    with zero.gathered(module.parameters(recurse=False)), torch.no_grad():
        yield module.merged() if isinstance(module, AptLinear) else module.weight


def tap_input(tap: Any) -> Any:
    """A forward pre-hook that shows the module's input to `tap`."""

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        tap(args[0])

    return hook


def tap_output(tap: Any) -> Any:
    """A forward hook that shows the module's output to `tap`."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        tap(output)

    return hook


def excess_kurtosis(moments: Tensor, count: int) -> Tensor:
    """Excess kurtosis from raw power sums. moments: [4, n], sums of x, x^2, x^3, x^4 over `count` values."""
    m1, m2, m3, m4 = (moments.double() / count).unbind(0)
    variance = (m2 - m1**2).clamp(min=1e-30)
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    return (fourth / variance**2 - 3).float()


def power_sums(weight: Tensor) -> Tensor:
    """Sums over rows of the first four powers: [out, in] -> fp64 [4, in]."""
    w = weight.double()
    square = w * w
    return torch.stack([w.sum(0), square.sum(0), (square * w).sum(0), (square * square).sum(0)])


def outlier_term(kurtosis: Tensor) -> Tensor:
    """sqrt(max(kurtosis, 0)): what a heavy tail adds to a block's score."""
    return kurtosis.clamp(min=0).sqrt()


def consumer_outliers(weight: Tensor, unit: int, mass: Tensor) -> Tensor:
    """Outlier term of a site's blocks from the weight of their consumer.

    weight: [d_m, blocks * unit]; mass: [blocks * unit], sum |x| per column. A column's own scale cancels for a neuron;
    for a head it weighs the head's dimensions against each other. Returns fp32 [blocks].
    """
    weighed = weight.double() * mass.double() if unit > 1 else weight
    sums = power_sums(weighed).view(4, -1, unit).sum(2)
    return outlier_term(excess_kurtosis(sums, weight.shape[0] * unit))


def reader_outliers(weight: Tensor) -> Tensor:
    """Outlier term of the hidden dimensions at one reader of the stream: [out, d_m] -> fp32 [d_m]."""
    return outlier_term(excess_kurtosis(power_sums(weight), weight.shape[0]))
