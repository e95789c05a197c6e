"""The sizes of a model by layer, for histograms."""

from __future__ import annotations

from torch import nn

from apt_ds.models import adapter
from apt_ds.models.blocks import Anatomy, plural


def layers_of(model: nn.Module, anatomy: Anatomy) -> dict[str, list[int]]:
    """The rank of each adapter, and what each sublayer keeps by kind of block. Waits for no device.

    Args:
        model: with or without adapters, partitioned or not.
        anatomy: that of `model`.
    """
    values = {"ranks": list(adapter.ranks(model).values())}
    for site, count in zip(anatomy.sites, anatomy.sizes.counts, strict=True):
        values.setdefault(f"kept/{plural(site.kind)}", []).append(count)
    return values
