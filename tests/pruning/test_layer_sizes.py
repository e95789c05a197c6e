"""Sizes by layer, as the files of a run have them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from apt_ds.models.architectures import anatomy_of
from apt_ds.pruning.layer_sizes import by_layer, describe
from tests.support import tiny, tiny_experts


def test_every_layer_has_its_number() -> None:
    anatomy = anatomy_of(tiny.config())
    counts = list(anatomy.sizes.counts)
    first_neurons = next(number for number, site in enumerate(anatomy.sites) if site.kind == "neuron")
    counts[first_neurons] -= 3
    sizes = replace(anatomy.sizes, counts=tuple(counts))
    before, after = by_layer(anatomy, anatomy.sizes), by_layer(anatomy, sizes)
    assert before.keys() == {"hidden", "heads", "neurons"} and before["hidden"] == anatomy.sizes.hidden
    assert len(before["heads"]) == len(before["neurons"]) == len(anatomy.layers)
    assert after["heads"] == before["heads"]
    assert [b - a for a, b in zip(after["neurons"], before["neurons"], strict=True)] == [3] + [0] * (
        len(anatomy.layers) - 1
    )
    # the form for people has one number where all layers are alike
    assert describe(anatomy, sizes)["neurons"] == after["neurons"]
    assert describe(anatomy, sizes)["heads"] == before["heads"][0]


@pytest.mark.parametrize("family", ["mixtral"])
def test_neurons_of_a_mixture_are_those_of_one_expert(family: str) -> None:
    model = tiny_experts.model(family)
    anatomy = anatomy_of(model.config)
    sizes = by_layer(anatomy, anatomy.sizes)
    shapes = [mixture.shape(anatomy.sizes) for mixture in anatomy.experts]
    assert list(zip(sizes["experts"], sizes["neurons"], strict=True)) == shapes
