"""Fluctuation of what consumers read: the baseline FLAP.

After An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI 2024. The metric WIFV
of input channel j of a consumer is Var(x_j) ||W_:,j||^2 over the tokens of the calibration. A channel that hardly
changes can be replaced by its mean. The metric is standardised over the channels of each consumer, so that layers and
kinds of block compare. A head gets the mean over its channels, as in the released code. The blocks of the lowest
standardised metric go first, whatever they cost. So `scores` is that metric, above 0, times the price. The search
divides by the price.

With `--structure adaptive` this is the paper's structure AL-AM. `bias_compensation.py` makes up for the removed means.

Departures: `budget_search` gives budget and alignment. The released code also squares the metric of heads'
channels. The formula of WIFV has no square, and neither has this module.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from apt_ds.pruning.input_moments import InputMoments, column_sums


class Flap(InputMoments):
    """Standardised fluctuation of every head and neuron."""

    def channels(self, number: int, weight: Tensor) -> np.ndarray:
        """WIFV: Var(x_j) ||W_:,j||^2. See `InputMoments.channels`."""
        return self.squares[self.places[number]] / self.counts[number] * column_sums(weight, 2)

    def site_densities(self, channels: np.ndarray) -> np.ndarray:
        """Standard scores over the channels of the site, and their mean over each block."""
        spread = channels.std()
        standard = (channels - channels.mean()) / spread if spread > 0 else np.zeros_like(channels)
        return standard.mean(axis=1)

    def removed_means(self) -> dict[int, np.ndarray]:
        """The mean of every input channel. See `Scorer.removed_means`."""
        return {number: self.means[self.places[number]] for number, _ in self.observed()}

    def comparable(self, densities: np.ndarray) -> np.ndarray:
        """Shift all by the same amount, so that the lowest is 1. The order stays."""
        spans = [span for _, span in self.observed()]
        lowest = min(densities[span].min() for span in spans)
        for span in spans:
            densities[span] += 1.0 - lowest
        return densities
