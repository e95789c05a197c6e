"""Scores and anatomies on which searches are compared."""

from __future__ import annotations

import numpy as np

from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import Anatomy
from tests.support import tiny

SCORES = ("continuous", "single precision", "few values", "mostly zero", "zero", "equal densities", "one kind first")


def anatomy(neurons: int, layers: int = 3, heads: int = 4, hidden: int = 32) -> Anatomy:
    """A small LLaMA with feed-forward sites of any size."""
    sizes = {"num_hidden_layers": layers, "intermediate_size": neurons, "hidden_size": hidden}
    return anatomy_of(tiny.config("mha", **sizes, num_attention_heads=heads, num_key_value_heads=heads, head_dim=8))


def scores(name: str, table: Anatomy, seed: int) -> np.ndarray:
    """One of `SCORES`, float64 [blocks]."""
    generator, prices = np.random.default_rng(seed), table.params_per_block(table.sizes)
    drawn = generator.lognormal(size=len(prices))
    if name == "continuous":
        return drawn * prices
    if name == "single precision":
        return (drawn * prices).astype(np.float32).astype(np.float64)
    if name == "few values":
        return generator.integers(1, 6, len(prices)) * prices
    if name == "mostly zero":
        return np.where(generator.random(len(prices)) < 0.2, drawn, 0.0)
    if name == "zero":
        return np.zeros(len(prices))
    if name == "equal densities":
        return prices.copy()
    # heads far above neurons: the best counts are at an end of the grid
    return np.where(prices == prices.max(), 1e3 * drawn, drawn)
