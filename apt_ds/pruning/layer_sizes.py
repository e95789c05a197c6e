"""How many blocks every sublayer of a model has, in the order of the model."""

from __future__ import annotations

from typing import Any

from apt_ds.models.blocks import Anatomy, Sizes


def by_layer(anatomy: Anatomy, sizes: Sizes) -> dict[str, Any]:
    """Numbers of blocks by sublayer.

    Args:
        anatomy: the table of the model's blocks.
        sizes: numbers of blocks of each site.

    Returns:
        `hidden`, and lists of `heads`, `neurons` and, with mixtures, `experts`. Neurons of a mixture are those of one
        expert.
    """
    mixtures = {mixture.neuron_site: mixture.shape(sizes)[1] for mixture in anatomy.experts}
    numbers = [mixtures.get(site, n) for site, n in enumerate(sizes.counts)]
    found: dict[str, Any] = {"hidden": sizes.hidden}
    for kind, name in (("head", "heads"), ("neuron", "neurons"), *([("expert", "experts")] if anatomy.experts else [])):
        found[name] = [n for site, n in zip(anatomy.sites, numbers, strict=True) if site.kind == kind]
    return found
