"""Scores from the mean and the spread of what consumers read: the base of `Flap` and `WandaSp`.

Every consumer of heads or neurons (`Sublayer.consumer`) has one mean and one sum of squares per input channel, over all
tokens of the calibration that count. Gradients play no part. They only say that a micro-batch is over.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from apt_ds.models.blocks import HIDDEN, Anatomy, block_slices
from apt_ds.pruning.activation_hooks import ActivationHooks, Observer
from apt_ds.pruning.kurtosis import effective_weight
from apt_ds.runtime import collectives

CHUNK_ELEMENTS = 1 << 20  # of an activation, that are converted to fp32 together


class InputMoments(ActivationHooks):
    """Moments of every input channel, and scores that a subclass makes of them and of the weights.

    Attributes:
        abs_sums: fp32 [2 dimensions + hooked modules], of this step: sums of x, sums of x^2, and counts of tokens.
        counts: float64 [hooked modules], tokens so far.
        means: float64 [dimensions], the mean of each channel over all ranks.
        squares: float64 [dimensions], the sum of squared differences from the mean over all ranks.
        densities: float64 [blocks], what `conclude` decides. A search keeps the blocks of the highest densities. 0
            where nothing is observed.
    """

    def resize(self, anatomy: Anatomy) -> None:
        """Take over an anatomy and forget all observations. Hooks must be off."""
        super().resize(anatomy)
        size = len(self.owner)
        self.abs_sums = torch.zeros(2 * size + len(self.paths), device=self.device)
        self.counts = np.zeros(len(self.paths))
        self.means, self.squares = np.zeros(size), np.zeros(size)
        self.densities = np.zeros(anatomy.sizes.total())

    def observes(self, site: int) -> bool:
        """Whether a site needs scores. Hidden dimensions have no consumer and get none."""
        return site != HIDDEN and super().observes(site)

    def watch(self, number: int, x: Tensor) -> Observer:
        """Sum x and x^2 over the tokens that count. Nothing is kept until the gradient arrives but the sums."""
        place, size, valid = self.places[number], len(self.owner), self.counted(number).valid
        sums = token_sums(valid, x)

        def commit(gradient: Tensor) -> None:
            self.abs_sums[:size][place] += sums[0]
            self.abs_sums[size : 2 * size][place] += sums[1]
            self.abs_sums[2 * size + number] += valid.sum(dtype=torch.float32)

        return commit

    def update(self, gradient_scale: float) -> None:
        """Combine this step's moments with those so far, in fp64. See `Scorer.update`."""
        size, sums = len(self.owner), self.abs_sums.cpu().numpy().astype(np.float64)
        self.abs_sums.zero_()
        for number, place in enumerate(self.places):
            count, before = sums[2 * size + number], self.counts[number]
            if not count:
                continue
            mean = sums[:size][place] / count
            squares = np.maximum(sums[size : 2 * size][place] - count * mean**2, 0.0)
            # parallel variance: no difference of large numbers between steps
            step, total = mean - self.means[place], before + count
            self.means[place] += step * count / total
            self.squares[place] += squares + step**2 * before * count / total
            self.counts[number] = total

    def conclude(self, model: nn.Module) -> None:
        """Make densities of the moments and the weights. Collective. Gathers one weight at a time."""
        if not self.counts.any():
            return
        densities = np.zeros(self.anatomy.sizes.total())
        for number, span in self.observed():
            site = self.anatomy.sites[number]
            with effective_weight(model.get_submodule(site.consumer)) as weight:
                channels = self.channels(number, weight)
            densities[span] = self.site_densities(channels.reshape(-1, site.unit))
        # devices may differ in the last bit
        self.densities = collectives.on_main(lambda: self.comparable(densities))

    @abstractmethod
    def channels(self, number: int, weight: Tensor) -> np.ndarray:
        """The metric of a consumer's input channels. weight: [out, channels], gathered. float64 [channels]."""

    @abstractmethod
    def site_densities(self, channels: np.ndarray) -> np.ndarray:
        """The densities of a site's blocks, from the metric of their channels: float64 [blocks, unit] -> [blocks]."""

    def comparable(self, densities: np.ndarray) -> np.ndarray:
        """Densities of all sites in a form that no search reads as "not scored": above 0 where observed."""
        return densities

    def observed(self) -> Iterator[tuple[int, slice]]:
        """(site, its slice of all blocks) of the sites with observations."""
        for number, span in block_slices(self.anatomy.sizes):
            if number != HIDDEN and self.counts[number]:
                yield number, span

    def scores(self) -> np.ndarray:
        """Density times parameters, float64 [blocks]: the search divides by parameters."""
        return self.densities * self.anatomy.params_per_block(self.anatomy.sizes)

    def after_cut(self, anatomy: Anatomy, keep: np.ndarray) -> None:
        """Forget all observations: they belong to the old shapes. Hooks must be off."""
        self.resize(anatomy)


def token_sums(valid: Tensor, x: Tensor) -> Tensor:
    """Sums of x and of x^2 over counted tokens, a chunk of tokens at a time.

    Args:
        valid: which tokens count, [1, batch * length].
        x: [batch, length, d].

    Returns:
        fp32 [2, d].
    """
    flat = x.detach().reshape(-1, x.shape[-1])
    total = torch.zeros(2, x.shape[-1], device=x.device)
    rows = max(1, CHUNK_ELEMENTS // x.shape[-1])
    for part, counts in zip(flat.split(rows), valid.float().squeeze(0).split(rows), strict=True):
        values = part.float()
        total[0] += counts @ values
        total[1] += counts @ values.square()
    return total


def column_sums(weight: Tensor, power: int) -> np.ndarray:
    """Sums over rows of |w|^power, a chunk of rows at a time: [out, in] -> float64 [in]."""
    total = torch.zeros(weight.shape[1], dtype=torch.float64, device=weight.device)
    for rows in weight.split(max(1, CHUNK_ELEMENTS // weight.shape[1])):
        total += rows.double().abs().pow(power).sum(0)
    return total.cpu().numpy()
