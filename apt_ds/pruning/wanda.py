"""Weights times the norm of what they read, by block: the baseline Wanda-sp.

After Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024, in the structured form
of An et al., AAAI 2024 (FLAP). The score of input channel j of a consumer is sum over i of |W_ij| ||x_j||_2. A head
sums over its channels. Blocks compare with the blocks of their own layer and kind only: every layer loses the same
fraction of its heads and of its neurons. So the density of a block is its rank at its site, as a fraction.

Departures: `budget_search` gives budget and alignment. All layers see the inputs of the unpruned model, where the
original prunes layer by layer.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from apt_ds.pruning.input_moments import InputMoments, column_sums


class WandaSp(InputMoments):
    """The rank of every head and neuron at its site."""

    def channels(self, number: int, weight: Tensor) -> np.ndarray:
        """Sum over i of |W_ij|, times ||x_j||_2. See `InputMoments.channels`."""
        place = self.places[number]
        norms = np.sqrt(self.squares[place] + self.counts[number] * self.means[place] ** 2)
        return column_sums(weight, 1) * norms

    def site_densities(self, channels: np.ndarray) -> np.ndarray:
        """Ranks as fractions: 1/n for the worst block of n, 1 for the best. A tie keeps the block of lower index."""
        worst_first = np.argsort(-channels.sum(axis=1), kind="stable")[::-1]
        ranks = np.empty(len(channels))
        ranks[worst_first] = np.arange(1, len(channels) + 1)
        return ranks / len(channels)
