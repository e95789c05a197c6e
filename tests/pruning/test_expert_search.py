"""The nested search: exhaustive on a tiny model, never above the budget, never fewer experts than a token needs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from apt_ds.config.errors import UserError
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import Anatomy, Sizes, block_slices, kept_sizes
from apt_ds.models.export.configs import writable_sizes
from apt_ds.pruning.budget_search import cuttable, search
from apt_ds.pruning.expert_counts import Counts, best_blocks, table_of
from apt_ds.pruning.layer_sizes import describe
from apt_ds.pruning.limits import Rules, default_align
from tests.pruning.test_expert_counts import anatomy_and_scores
from tests.support import tiny_experts

ALL = ("heads", "neurons", "hidden", "experts")


@pytest.mark.parametrize("kept", [0.9, 0.6, 0.35])
def test_uniform_numbers_are_the_best_of_all(kept: float) -> None:
    anatomy, scores = anatomy_and_scores()
    budget = kept * anatomy.num_parameters(anatomy.sizes)
    keep = search(scores, anatomy, Rules(ALL, "uniform", 8, 8), budget)
    # what an expert's neurons score counts once
    counted = scores.copy()
    for mixture in anatomy.experts:
        counted[dict(block_slices(anatomy.sizes))[mixture.expert_site]] = 0.0
    fitting = []
    for heads, experts, neurons, hidden in itertools.product((1, 2), (2, 3, 4, 5), (8, 16, 24), (8, 16, 24, 32)):
        blocks = best_blocks(scores, anatomy, np.array([heads, experts, neurons] * 2 + [hidden]))
        size = anatomy.num_parameters(kept_sizes(anatomy.sizes, blocks))
        if size <= budget:
            fitting.append((size >= 0.99 * budget, size, counted[blocks].sum()))
    near = [value for is_near, _, value in fitting if is_near]
    largest = max(size for _, size, _ in fitting)
    best = max(near) if near else max(value for _, size, value in fitting if size == largest)
    assert np.isclose(counted[keep].sum(), best)


@pytest.mark.parametrize("structure", ["uniform", "adaptive"])
@pytest.mark.parametrize("kinds", [("experts",), ("neurons", "experts"), ALL])
def test_plans_fit_and_respect_their_limits(structure: str, kinds: tuple[str, ...]) -> None:
    anatomy, scores = anatomy_and_scores()
    counts = Counts(anatomy)
    for kept in (1.0, 0.85, 0.7, 0.55):
        budget = kept * anatomy.num_parameters(anatomy.sizes)
        keep = search(scores, anatomy, Rules(kinds, structure, 8, 8), budget)
        sizes = kept_sizes(anatomy.sizes, keep)
        assert anatomy.num_parameters(sizes) <= budget and keep.all() == (kept == 1.0)
        layers = [mixture.shape(sizes) for mixture in anatomy.experts]
        assert all(experts >= 2 and neurons % 8 == 0 for experts, neurons in layers)
        assert structure == "adaptive" or len({*layers}) == 1
        if kinds == ("experts",):
            assert all(neurons == 24 for _, neurons in layers) and sizes.hidden == 32
        assert np.array_equal(keep, best_blocks(scores, anatomy, _numbers(anatomy, sizes)))
        # one unit more of anything would not fit
        if structure == "adaptive" and kept < 1.0:
            numbers = _numbers(anatomy, sizes)
            for site, full in enumerate(counts.full):
                kind = counts.kinds[site]
                more = numbers.copy()
                more[site] += {"head": 1, "expert": 1, "neuron": 8, "hidden": 8}[kind]
                free = {"head": "heads", "expert": "experts", "neuron": "neurons", "hidden": "hidden"}[kind] in kinds
                assert not free or more[site] > full or counts.parameters(more) > budget


def _numbers(anatomy: Anatomy, sizes: Sizes) -> np.ndarray:
    numbers = np.array([*sizes.counts, sizes.hidden])
    for mixture in anatomy.experts:
        numbers[mixture.neuron_site] = mixture.shape(sizes)[1]
    return numbers


def test_a_budget_below_the_experts_of_a_token_is_one_line() -> None:
    anatomy, scores = anatomy_and_scores()
    budget = 0.2 * anatomy.num_parameters(anatomy.sizes)
    with pytest.raises(UserError, match=r"pruning experts .* at least 2 experts in every layer, leaves at least 1"):
        search(scores, anatomy, Rules(("experts",), "uniform", 8, 8), budget)


def test_a_uniform_plan_has_sizes_that_the_family_can_write() -> None:
    config = tiny_experts.model("olmoe").config
    anatomy = anatomy_of(config)
    scores = np.random.default_rng(0).exponential(size=anatomy.sizes.total())
    budget = 0.5 * anatomy.num_parameters(anatomy.sizes)
    keep = search(scores, anatomy, Rules(ALL, "uniform", 8, 8, writable_sizes(config)), budget)
    sizes = kept_sizes(anatomy.sizes, keep)
    assert sizes.hidden == sizes.counts[0] * 16
    with pytest.raises(UserError, match="can be written: OLMoE needs a hidden size equal to the query heads"):
        search(scores, anatomy, Rules(("heads",), "uniform", 8, 8, writable_sizes(config)), 0.97 * 2 * budget)


@pytest.mark.parametrize("structure", ["uniform", "adaptive"])
def test_dead_blocks_go_as_far_as_the_structure_allows(structure: str) -> None:
    anatomy, scores = anatomy_and_scores()
    where = dict(block_slices(anatomy.sizes))
    removable = np.zeros(anatomy.sizes.total(), dtype=bool)
    # layer 0 loses an expert, and 9 neurons of all others. Layer 1 loses 8 neurons of all
    removable[where[1].start + 4] = True
    for site, lost in ((2, 9), (5, 8)):
        table = np.zeros((5, 24), dtype=bool)
        table[:, :lost] = True
        table[4] |= site == 2
        removable[where[site]] = table.ravel()
    keep = cuttable(removable, scores, anatomy, Rules(ALL, structure, 8, 8))
    first, second = anatomy.experts
    assert table_of(keep, anatomy, second).sum() == 5 * 16 and not (keep & removable)[where[5]].any()
    if structure == "adaptive":
        assert table_of(keep, anatomy, first).sum() == 4 * 16 and not keep[where[1].start + 4]
    else:
        # the other layer keeps its experts, so the masked one stays
        assert keep[where[1]].all() and table_of(keep, anatomy, first).sum() == 5 * 16
    remaining = table_of(~removable, anatomy, first)
    assert (table_of(keep, anatomy, first)[:4] | ~remaining[:4]).all()


def test_units_and_descriptions_of_models_with_experts() -> None:
    anatomy, _ = anatomy_and_scores()
    assert default_align(anatomy) == 8
    described = describe(anatomy, anatomy.sizes)
    assert described["experts"] == 5 and described["neurons"] == 24 and described["heads"] == 2
