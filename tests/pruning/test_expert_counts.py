"""Numbers of experts and of neurons of each: sizes, prices, scores and blocks."""

from __future__ import annotations

import numpy as np

from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import Anatomy, block_slices, kept_sizes
from apt_ds.pruning.expert_counts import Counts, best_blocks, mixture_gain, table_of
from tests.support import tiny_experts


def anatomy_and_scores() -> tuple[Anatomy, np.ndarray]:
    """The blocks of a tiny model, and random scores. The score of an expert is that of its neurons."""
    anatomy = anatomy_of(tiny_experts.model("mixtral").config)
    scores = np.random.default_rng(0).exponential(size=anatomy.sizes.total())
    where = dict(block_slices(anatomy.sizes))
    for mixture in anatomy.experts:
        scores[where[mixture.expert_site]] = table_of(scores, anatomy, mixture).sum(1)
    return anatomy, scores


def test_numbers_cost_what_the_blocks_that_they_mean_cost() -> None:
    anatomy, scores = anatomy_and_scores()
    counts = Counts(anatomy)
    assert counts.full.tolist() == [2, 5, 24, 2, 5, 24, 32]
    assert counts.parameters(counts.full) == anatomy.num_parameters(anatomy.sizes)
    for numbers in ([1, 3, 8, 2, 2, 16, 24], [2, 5, 8, 1, 4, 24, 8]):
        keep = best_blocks(scores, anatomy, np.array(numbers))
        assert counts.parameters(np.array(numbers)) == anatomy.num_parameters(kept_sizes(anatomy.sizes, keep))


def test_a_price_is_what_one_block_less_saves() -> None:
    anatomy, _ = anatomy_and_scores()
    counts = Counts(anatomy)
    for site, price in enumerate(counts.prices()):
        fewer = counts.full.copy()
        fewer[site] -= 1
        assert counts.parameters(counts.full) - counts.parameters(fewer) == price


def test_the_best_blocks_are_the_best_neurons_of_the_best_experts() -> None:
    anatomy, scores = anatomy_and_scores()
    keep = best_blocks(scores, anatomy, np.array([1, 3, 8, 1, 2, 16, 16]))
    where = dict(block_slices(anatomy.sizes))
    for mixture, experts, neurons in zip(anatomy.experts, (3, 2), (8, 16), strict=True):
        best = np.argsort(-scores[where[mixture.expert_site]])[:experts]
        assert sorted(best) == np.flatnonzero(keep[where[mixture.expert_site]]).tolist()
        table, values = table_of(keep, anatomy, mixture), table_of(scores, anatomy, mixture)
        assert table.sum() == experts * neurons
        for expert in best:
            assert values[expert][table[expert]].min() > values[expert][~table[expert]].max()


def test_gain_is_the_score_of_the_blocks_that_remain() -> None:
    anatomy, scores = anatomy_and_scores()
    gain = mixture_gain(scores, anatomy)
    where = dict(block_slices(anatomy.sizes))
    for experts, neurons in ((1, 1), (3, 8), (5, 24)):
        keep = best_blocks(scores, anatomy, np.array([2, experts, neurons, 2, experts, neurons, 32]))
        kept = sum((scores * keep)[where[mixture.neuron_site]].sum() for mixture in anatomy.experts)
        assert np.isclose(gain[experts - 1, neurons - 1], kept)


def test_living_neurons_are_those_of_the_expert_with_most() -> None:
    anatomy, _ = anatomy_and_scores()
    removable = np.zeros(anatomy.sizes.total(), dtype=bool)
    span = dict(block_slices(anatomy.sizes))[2]
    removable[span] = True
    removable[span.start + 30 : span.start + 37] = False
    removable[span.start + 50 : span.start + 53] = False
    assert Counts(anatomy).remaining(removable).tolist() == [2, 5, 7, 2, 5, 24, 32]
