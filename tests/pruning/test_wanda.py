"""Structured Wanda: the score of a block, and that every layer and kind loses the same fraction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apt_ds.data.batching import collate
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import Anatomy, block_slices
from apt_ds.pruning.budget_search import search
from apt_ds.pruning.limits import Rules
from apt_ds.pruning.wanda import WandaSp
from tests.pruning.test_input_moments import KINDS, observe, plain_inputs
from tests.support import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scored() -> tuple[WandaSp, Anatomy, list[np.ndarray]]:
    """A scorer, its anatomy, and the scores of every site's blocks by the definition."""
    model = tiny.model("mha")
    anatomy = anatomy_of(model.config)
    scorer = WandaSp(anatomy, CPU, KINDS)
    scorer.install(model)
    observe(scorer, model, [collate(tiny.rows(6), 0)])
    scorer.remove()
    scorer.conclude(model)
    scores = []
    for site, x in zip(
        anatomy.sites, plain_inputs(model, [site.consumer for site in anatomy.sites], tiny.rows(6)), strict=True
    ):
        weight = model.get_submodule(site.consumer).weight.detach().double().abs().numpy()
        channels = (weight * np.sqrt(np.square(x).sum(0))).sum(0)
        scores.append(channels.reshape(-1, site.unit).sum(1))
    return scorer, anatomy, scores


def test_densities_are_the_ranks_of_weights_times_norms(scored: tuple[WandaSp, Anatomy, list[np.ndarray]]) -> None:
    scorer, anatomy, scores = scored
    for (number, span), own in zip(list(block_slices(anatomy.sizes))[:-1], scores, strict=True):
        assert np.array_equal(np.argsort(-scorer.densities[span]), np.argsort(-own)), number
        assert np.allclose(np.sort(scorer.densities[span]), np.arange(1, len(own) + 1) / len(own))


@pytest.mark.parametrize("structure", ["adaptive", "uniform"])
def test_every_layer_and_kind_loses_the_same_fraction(
    scored: tuple[WandaSp, Anatomy, list[np.ndarray]], structure: str
) -> None:
    scorer, anatomy, scores = scored
    keep = search(scorer.scores(), anatomy, Rules(KINDS, structure), 0.75 * anatomy.num_parameters(anatomy.sizes))
    for (_, span), own in zip(list(block_slices(anatomy.sizes))[:-1], scores, strict=True):
        assert keep[span].sum() == round(0.75 * len(own))
        assert set(np.flatnonzero(keep[span])) == set(np.argsort(-own)[: keep[span].sum()])


def test_a_tie_keeps_the_lower_index() -> None:
    scorer = WandaSp(anatomy_of(tiny.config("mha")), CPU, KINDS)
    assert np.array_equal(scorer.site_densities(np.array([[1.0], [2.0], [1.0], [2.0]])), [0.5, 1.0, 0.25, 0.75])
