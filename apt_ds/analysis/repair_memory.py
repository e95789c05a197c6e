"""Bytes that a repair needs on a rank beside the weights (`pruning/repair.py`)."""

from __future__ import annotations

from collections.abc import Iterable

from apt_ds.models.blocks import Anatomy

FP32 = 4
GRAMS = 5  # matrices of [in, in] at the same time: of both halves, their sum or the kept part, a factor, and a product
WEIGHTS = 4  # fp32 copies of the repaired weight: itself, the change, and two products


def repair_bytes(anatomy: Anatomy, batches: Iterable[tuple[int, int]], item: int, readers: bool = False) -> int:
    """Peak bytes of a repair: the largest fit, and what the walk keeps of all batches.

    Args:
        anatomy: the model before the cut.
        batches: rows and tokens of a row of every calibration batch of the rank.
        item: bytes of an activation.
        readers: whether hidden dimensions go too. A fit of their readers has an input before and after the cut.
    """
    sizes, hidden = anatomy.sizes, anatomy.sizes.hidden
    nested = {mixture.neuron_site for mixture in anatomy.experts}
    widths = [
        site.unit * count
        for number, (site, count) in enumerate(zip(anatomy.sites, sizes.counts, strict=True))
        if site.kind != "expert" and number not in nested
    ]
    # inputs and outputs: consumers write the stream, readers write what consumers read
    shapes = [(width, hidden) for width in widths]
    shapes += [(2 * hidden, max(widths, default=hidden))] if readers else []
    fits = max((FP32 * (GRAMS * width * width + WEIGHTS * out * width) for width, out in shapes), default=0)
    # the input of a layer for every batch, and its mask of [rows, 1, tokens, tokens]
    states = sum(rows * tokens * (hidden + tokens) * item for rows, tokens in batches)
    return fits + states
