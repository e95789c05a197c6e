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
    table: dict[str, Any] = {"hidden": sizes.hidden}
    for kind, name in (("head", "heads"), ("neuron", "neurons"), *([("expert", "experts")] if anatomy.experts else [])):
        table[name] = [n for site, n in zip(anatomy.sites, numbers, strict=True) if site.kind == kind]
    return table


def describe(anatomy: Anatomy, sizes: Sizes) -> dict[str, object]:
    """Sizes for people: a count per kind, or a list where sites differ."""
    layers = by_layer(anatomy, sizes)
    sizes_by_kind: dict[str, object] = {"hidden": layers.pop("hidden"), "parameters": anatomy.num_parameters(sizes)}
    for name, counts in layers.items():
        sizes_by_kind[name] = counts[0] if len(set(counts)) == 1 else counts
    return sizes_by_kind
