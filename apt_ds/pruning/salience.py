"""Outlier-aware salience of every block, from activations and their gradients (section 3).

Per optimizer step and over the global batch every dimension has a product of activations and gradients; a block's
score is the sum of it over its dimensions (a head) or over all places that write the stream (a hidden dimension), so
that scores of blocks of any size compare per parameter. Two products: `masses` is the method's, A * G with A = sum |H|,
G = sum |dL/dH|; `examples` is sum over examples of |sum over its tokens of H * dL/dH|, which sees that a neuron may be
large on one token and matter on another, and that what it does on two of them may cancel. The outlier term adds
sqrt(max(excess kurtosis, 0)) of the block's contributions, times a weight. Departure: `normalized` divides both terms
by their mean over the kind, as the method says, and then gives the sum the scale of the first term back, since kinds
would not compare otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apt_ds.models import quantization
from apt_ds.models.adapter import AptLinear
from apt_ds.models.blocks import HIDDEN, Anatomy, block_slices
from apt_ds.pruning.activation_hooks import ActivationHooks
from apt_ds.runtime import zero

PIECE = 1 << 20  # elements


@contextmanager
def in_order() -> Iterator[None]:
    """Sums in one order: otherwise a GPU adds in any, and ranks that decide for themselves differ."""
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)


class Salience(ActivationHooks):
    """Averages of what the taps sum up.

    average: fp32 [blocks], the moving average of scores; abs_sums: fp32 [2, dimensions], of this step A and then G, or
    with product `per_example` what stands for A * G; stale: whether the outlier term must be measured before the next
    update. Product `examples` holds the activations at all taps until their gradients are there.

    mean: for weights at rest. The average is then the plain mean of the first-order terms of `count` steps, and
    `activations` (fp32 [dimensions]) sums their A. `conclude` adds the outlier term once, before scores are used.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        decay: float,
        outlier: str,
        weight: float,
        device: torch.device,
        product: str = "batch",
        mean: bool = False,
    ) -> None:
        self.decay, self.outlier, self.weight, self.product, self.mean = decay, outlier, weight, product, mean
        # where memory is what a sum costs
        self.lean = device.type != "cpu"
        super().__init__(anatomy, device)
        self.average = torch.zeros(anatomy.sizes.total(), device=device)

    def resize(self, anatomy: Anatomy) -> None:
        """Take over an anatomy; this step's masses and the outlier term are forgotten. Taps must be off."""
        super().resize(anatomy)
        self.abs_sums = torch.zeros(2, len(self.owner), device=self.device)
        self.outliers = torch.zeros(anatomy.sizes.total(), device=self.device)
        self.refresh()
        self.activations = torch.zeros(len(self.owner), device=self.device)
        self.count = 0
        self._kind = torch.from_numpy(block_kinds(anatomy)).to(self.device)

    def refresh(self) -> None:
        """Measure the outlier term again before the next update of a moving average: weights have changed."""
        self.stale = self.outlier != "off" and not self.mean

    def prepare(self, mask: Tensor, second: Tensor) -> None:
        """On a GPU: the tokens that do not count, which a tap then takes off a sum over all."""
        if self.lean:
            blanks = ((side.flatten() == 0).nonzero().squeeze(1) for side in (mask, second))
            self._blank, self._second_blank = map(self.sent, blanks)

    def watch(self, number: int, x: Tensor) -> Any:
        """Sums |x| now, |gradient| or the products with x later; commits both together."""
        place, valid = self.places[number], self.counted(number)
        measure = partial(column_mass, valid)
        if self.lean:
            measure = partial(column_norm, self._second_blank if valid is self.second else self._blank)
        activation, kept = measure(x), x if self.product == "per_example" else None

        def commit(gradient: Tensor) -> None:
            self.abs_sums[0, place] += activation
            if kept is None:
                self.abs_sums[1, place] += measure(gradient)
            else:
                self.abs_sums[1, place] += example_products(valid, kept, gradient, self.members)

        return commit

    def measure_outliers(self, model: nn.Module, activations: Tensor | None = None) -> None:
        """Read the outlier term from the weights, frozen and tuned part together.

        Gathers one weight at a time: collective under stage 3. activations: sums of |x|, fp32 [dimensions], already
        summed over ranks. The default is those of this step.
        """
        self.stale = False
        self.outliers.zero_()
        where = dict(block_slices(self.anatomy.sizes))
        activations = self.abs_sums[0] if activations is None else activations
        for number, site in enumerate(self.anatomy.sites):
            mass = activations[self.places[number]]
            with effective_weight(model.get_submodule(site.consumer)) as weight:
                self.outliers[where[number]] = consumer_outliers(weight, site.unit, mass)
        for path in self.anatomy.readers:
            with effective_weight(model.get_submodule(path)) as weight:
                self.outliers[where[HIDDEN]] += reader_outliers(weight) / len(self.anatomy.readers)

    def update(self, gradient_scale: float) -> None:
        """Turn this step's masses (already summed over ranks) into scores and take them into the average.

        gradient_scale: what the hooks' gradients must be multiplied with to be those of the global mean loss
        (undoes loss scaling and averaging over ranks), so that scores do not depend on the split.
        """
        first_order = torch.zeros_like(self.average)
        products = self.abs_sums[1] if self.product == "per_example" else self.abs_sums[0] * self.abs_sums[1]
        with in_order():
            first_order.index_add_(0, self.owner, products * gradient_scale)
            if self.mean:
                self.count += 1
                self.average.lerp_(first_order, 1 / self.count)
                self.activations += self.abs_sums[0]
            else:
                self.average.mul_(self.decay).add_(self.combine(first_order), alpha=1 - self.decay)
        self.abs_sums.zero_()

    def conclude(self, model: nn.Module) -> None:
        """Add the outlier term to a mean of first-order terms; later steps begin a new mean. Collective.

        The term takes the activations of all steps of the mean. Every step's score is linear in its first-order term,
        so that this is the mean of their scores.
        """
        if not self.mean or not self.count:
            return
        if self.outlier != "off":
            self.measure_outliers(model, self.activations)
        with in_order():
            self.average = self.combine(self.average)
        self.activations.zero_()
        self.count = 0

    def discard(self) -> None:
        """Forget this step's masses (a non-finite loss)."""
        self.abs_sums.zero_()

    def combine(self, first_order: Tensor) -> Tensor:
        """First-order term [blocks] plus the outlier term, in one of the two ways of section 3."""
        if self.outlier == "off":
            return first_order
        if self.outlier == "literal":
            return first_order + self.weight * self.outliers
        counts = torch.zeros(3, device=self.device).index_add_(0, self._kind, torch.ones_like(first_order)).clamp(min=1)
        mean = torch.zeros(3, device=self.device).index_add_(0, self._kind, first_order) / counts
        mean_outlier = torch.zeros(3, device=self.device).index_add_(0, self._kind, self.outliers) / counts
        scale = self.weight * mean / mean_outlier.clamp(min=1e-12)
        return first_order + scale[self._kind] * self.outliers

    def scores(self) -> np.ndarray:
        """The average, float64 [blocks] on the host."""
        return self.average.double().cpu().numpy()

    def after_cut(self, anatomy: Anatomy, keep: np.ndarray) -> None:
        """Follow a cut: averages keep their blocks, the outlier term must be measured again. Taps must be off."""
        average = self.average[torch.from_numpy(keep).to(self.device)]
        self.resize(anatomy)
        self.average = average


def block_kinds(anatomy: Anatomy) -> np.ndarray:
    """0 head, 1 neuron, 2 hidden for every block, int64 [blocks]."""
    number = {"head": 0, "neuron": 1, "hidden": 2}
    kinds = np.empty(anatomy.sizes.total(), dtype=np.int64)
    for site, span in block_slices(anatomy.sizes):
        kinds[span] = number[anatomy.kind(site)]
    return kinds


def column_mass(valid: Tensor, x: Tensor) -> Tensor:
    """Sum of |x| over counted tokens: [1, tokens] x [..., tokens, d] -> fp32 [d]. One fused reduction."""
    return (valid.to(x.dtype) @ x.detach().abs().reshape(-1, x.shape[-1])).float().squeeze(0)


def column_norm(blank: Tensor, x: Tensor) -> Tensor:
    """What `column_mass` gives, by reading x once and writing nothing: all tokens less those that do not count.

    blank: int64 [n], the tokens that do not count. For a GPU, where memory is what it costs; a CPU is slow at reducing
    columns.
    """
    flat = x.detach().reshape(-1, x.shape[-1])
    mass = torch.linalg.vector_norm(flat, 1, dim=0, dtype=torch.float32)
    if not len(blank):
        return mass
    return (mass - torch.linalg.vector_norm(flat[blank], 1, dim=0, dtype=torch.float32)).clamp(min=0)


def example_products(valid: Tensor, x: Tensor, gradient: Tensor, members: Tensor | None = None) -> Tensor:
    """Sum over examples of |sum of x * gradient over their counted tokens|: [1, batch * length], 2 x [batch, length, d]
    -> fp32 [d].

    members: what every token counts in every example, [examples, batch * length]; None: a row is an example. Products
    and sums are rounded like x, the summing is not; fp16 has not the range for it.
    """
    products = x.float() * gradient.float() if x.dtype == torch.float16 else x * gradient
    if members is None:
        counts = valid.to(products.dtype).view(len(x), 1, -1)
        return (counts @ products).float().abs().sum(dim=(0, 1))
    return (members.to(products.dtype) @ products.flatten(0, 1)).float().abs().sum(dim=0)


@contextmanager
def effective_weight(module: nn.Linear) -> Iterator[Tensor]:
    """The weight with its adapter's part, [out, in], gathered for as long as the context lasts."""
    with zero.gathered(module.parameters(recurse=False)), torch.no_grad():
        yield module.merged() if isinstance(module, AptLinear) else quantization.dense(module.weight)


def excess_kurtosis(moments: Tensor, count: int) -> Tensor:
    """Excess kurtosis from raw power sums. moments: [4, n], sums of x, x^2, x^3, x^4 over `count` values."""
    m1, m2, m3, m4 = (moments.double() / count).unbind(0)
    variance = (m2 - m1**2).clamp(min=1e-30)
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    return (fourth / variance**2 - 3).float()


def power_sums(weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """Sums over rows of the first four powers of weight * scale: [out, in], [in] -> fp64 [4, in].

    A piece of the rows at a time: in fp64 all of them may be larger than everything else of a step.
    """
    total = torch.zeros(4, weight.shape[1], dtype=torch.float64, device=weight.device)
    for rows in weight.split(max(1, PIECE // weight.shape[1])):
        w = rows.double() if scale is None else rows.double() * scale.double()
        square = w * w
        total += torch.stack([w.sum(0), square.sum(0), (square * w).sum(0), (square * square).sum(0)])
    return total


def outlier_term(kurtosis: Tensor) -> Tensor:
    """sqrt(max(kurtosis, 0)): what a heavy tail adds to a block's score."""
    return kurtosis.clamp(min=0).sqrt()


def consumer_outliers(weight: Tensor, unit: int, mass: Tensor) -> Tensor:
    """Outlier term of a site's blocks from the weight of their consumer.

    weight: [d_m, blocks * unit]; mass: [blocks * unit], sum |x| per column. A column's own scale cancels for a neuron;
    for a head it weighs the head's dimensions against each other. Returns fp32 [blocks].
    """
    sums = power_sums(weight, mass if unit > 1 else None).view(4, -1, unit).sum(2)
    return outlier_term(excess_kurtosis(sums, weight.shape[0] * unit))


def reader_outliers(weight: Tensor) -> Tensor:
    """Outlier term of the hidden dimensions at one reader of the stream: [out, d_m] -> fp32 [d_m]."""
    return outlier_term(excess_kurtosis(power_sums(weight), weight.shape[0]))
