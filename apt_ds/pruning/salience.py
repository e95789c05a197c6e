"""Outlier-aware salience of every block, from activations and their gradients (METHOD.md section 3).

Every dimension has a first-order product of activations and gradients per optimizer step, over the global batch
(`products.py`). A block's score is the sum over its dimensions (a head), over its neurons (an expert) or over all
places that write the stream (a hidden dimension), so that scores of blocks of any size compare per parameter. Neurons
of an expert see only the tokens that reach it. The outlier term adds
sqrt(max(excess kurtosis, 0)) of the block's contributions, times a weight (`kurtosis.py`).

Departure from the method: `normalized` divides both terms by their mean over the kind, as the method says. It then
multiplies the sum by the mean of the first term, since kinds would not compare otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apt_ds.models.blocks import ALL_KINDS, HIDDEN, Anatomy, block_slices
from apt_ds.pruning.activation_hooks import ActivationHooks, Observer
from apt_ds.pruning.block_sums import BlockSums
from apt_ds.pruning.kurtosis import consumer_outliers, effective_weight, mixture_outliers, reader_outliers
from apt_ds.pruning.products import PRODUCTS
from apt_ds.pruning.slot_products import Slots

KINDS = ("head", "neuron", "hidden", "expert")


class Salience(ActivationHooks):
    """Averages of what the hooks sum up.

    Attributes:
        average: fp32 [blocks], the moving average of scores. With `mean` the plain mean of first-order terms.
        abs_sums: fp32 [2, dimensions], of this step: A, and what the product takes from gradients.
        outliers: fp32 [blocks], the kurtosis term.
        stale: whether `outliers` must be measured before the next update.
        mean: for weights at rest. `conclude` then adds the outlier term once, before scores are used.
        count: the steps that the plain mean is over.
        activations: fp32 [dimensions], the sum of their A.
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
        kinds: tuple[str, ...] = ALL_KINDS,
    ) -> None:
        self.decay, self.outlier, self.weight, self.mean = decay, outlier, weight, mean
        self.product = PRODUCTS[product]()
        super().__init__(anatomy, device, kinds)
        self.average = torch.zeros(anatomy.sizes.total(), device=device)

    def resize(self, anatomy: Anatomy) -> None:
        """Take over an anatomy. Forget this step's sums and the outlier term. Hooks must be off."""
        super().resize(anatomy)
        self.abs_sums = torch.zeros(2, len(self.owner), device=self.device)
        self.outliers = torch.zeros(anatomy.sizes.total(), device=self.device)
        self.refresh()
        self.activations = torch.zeros(len(self.owner), device=self.device)
        self.count = 0
        self._block_sums = BlockSums(self.owner, anatomy.sizes.total())
        self._set_kinds(torch.from_numpy(block_kinds(anatomy)))

    def _set_kinds(self, kinds: Tensor) -> None:
        """Take over the kind of every block, int64 [blocks]."""
        self._kind = kinds.to(self.device)
        self._kind_sums = BlockSums(self._kind, len(KINDS))
        self._kind_counts = torch.bincount(kinds, minlength=len(KINDS)).clamp(min=1).to(self.device)

    def refresh(self) -> None:
        """Measure the outlier term again before the next update of a moving average: weights have changed."""
        self.stale = self.outlier != "off" and not self.mean

    def watch(self, number: int, x: Tensor) -> Observer:
        """Sum what the product takes from the activation and its gradient."""
        return self.product.watch(x, self.counted(number), self.abs_sums[:, self.places[number]])

    def watch_slots(self, number: int, x: Tensor, experts: Tensor, tokens: Tensor) -> Observer:
        """Sum what the product takes from the neurons of experts and their gradient."""
        place = self.places[number]
        slots = Slots(experts, tokens, self.counted(number), (place.stop - place.start) // x.shape[1])
        return self.product.watch_slots(x, slots, self.abs_sums[:, place])

    def measure_outliers(self, model: nn.Module, activations: Tensor | None = None) -> None:
        """Measure the outlier term of the weights, frozen and trained part together.

        Collective under ZeRO stage 3. Gathers one weight at a time.

        Args:
            model: the model with the weights.
            activations: sums of |x| over all ranks, fp32 [dimensions]. The default is those of this step.
        """
        self.stale = False
        self.outliers.zero_()
        where = dict(block_slices(self.anatomy.sizes))
        activations = self.abs_sums[0] if activations is None else activations
        readers = len(self.anatomy.readers) + len(self.anatomy.experts)
        in_mixtures = {site for m in self.anatomy.experts for site in (m.expert_site, m.neuron_site)}
        for number, site in enumerate(self.anatomy.sites):
            if number in in_mixtures or not self.observes(number) or not self.anatomy.sizes.counts[number]:
                continue
            abs_sums = activations[self.places[number]]
            with effective_weight(model.get_submodule(site.consumer)) as weight:
                self.outliers[where[number]] = consumer_outliers(weight, site.unit, abs_sums)
        for path in self.anatomy.readers if self.observes(HIDDEN) else ():
            with effective_weight(model.get_submodule(path)) as weight:
                self.outliers[where[HIDDEN]] += reader_outliers(weight) / readers
        for mixture in self.anatomy.experts:
            abs_sums = activations[self.places[mixture.neuron_site]]
            experts, neurons, hidden = mixture_outliers(model.get_submodule(mixture.path), abs_sums)
            self.outliers[where[mixture.expert_site]] = experts
            self.outliers[where[mixture.neuron_site]] = neurons
            self.outliers[where[HIDDEN]] += hidden / readers

    def update(self, gradient_scale: float) -> None:
        """Turn this step's sums into scores and take them into the average. See `Scorer.update`."""
        first_order = self._block_sums.sum(self.product.first_order(self.abs_sums) * gradient_scale)
        add_up_experts(self.anatomy, first_order)
        if self.mean:
            self.count += 1
            self.average.lerp_(first_order, 1 / self.count)
            self.activations += self.abs_sums[0]
        else:
            self.average.mul_(self.decay).add_(self.combine(first_order), alpha=1 - self.decay)
        self.abs_sums.zero_()

    def conclude(self, model: nn.Module) -> None:
        """Add the outlier term to a mean of first-order terms. Later steps begin a new mean. Collective.

        The term takes the activations of all steps of the mean. Every step's score is linear in its first-order term,
        so that this is the mean of their scores.
        """
        if not self.mean or not self.count:
            return
        if self.outlier != "off":
            self.measure_outliers(model, self.activations)
        self.average = self.combine(self.average)
        self.activations.zero_()
        self.count = 0

    def combine(self, first_order: Tensor) -> Tensor:
        """First-order term [blocks] plus the outlier term, in one of the two ways of METHOD.md section 3."""
        if self.outlier == "off":
            return first_order
        if self.outlier == "literal":
            return first_order + self.weight * self.outliers
        mean = self._kind_sums.sum(first_order) / self._kind_counts
        mean_outlier = self._kind_sums.sum(self.outliers) / self._kind_counts
        scale = self.weight * mean / mean_outlier.clamp(min=1e-12)
        return first_order + scale[self._kind] * self.outliers

    def scores(self) -> np.ndarray:
        """The average, float64 [blocks] on the host."""
        return self.average.cpu().numpy().astype(np.float64)

    def after_cut(self, anatomy: Anatomy, keep: np.ndarray) -> None:
        """Follow a cut. Averages follow their blocks. The outlier term must be measured again. Hooks must be off."""
        average = self.average[torch.from_numpy(keep).to(self.device)]
        self.resize(anatomy)
        self.average = average

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The average, the outlier term and whether it is stale."""
        return {"stale": self.stale}, {"average": self.average.cpu(), "outliers": self.outliers.cpu()}

    def load_state_dict(self, kept_ids: np.ndarray, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take over `state_dict`."""
        self.average, self.outliers = tensors["average"].to(self.device), tensors["outliers"].to(self.device)
        self.stale = values["stale"]


def add_up_experts(anatomy: Anatomy, values: Tensor) -> None:
    """Give every expert the sum of its neurons' values, in place. [blocks]."""
    where = dict(block_slices(anatomy.sizes))
    for mixture in anatomy.experts:
        neurons = values[where[mixture.neuron_site]].view(*mixture.shape(anatomy.sizes))
        values[where[mixture.expert_site]] = neurons.sum(dim=1)


def block_kinds(anatomy: Anatomy) -> np.ndarray:
    """0 head, 1 neuron, 2 hidden, 3 expert for every block, int64 [blocks]."""
    kinds = np.empty(anatomy.sizes.total(), dtype=np.int64)
    for site, span in block_slices(anatomy.sizes):
        kinds[span] = KINDS.index(anatomy.kind(site))
    return kinds
