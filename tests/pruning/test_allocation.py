"""The search of sizes, on divergences that are known functions of what is removed."""

from __future__ import annotations

import numpy as np
import pytest

from apt_ds.models.blocks import Anatomy, block_slices, kept_sizes
from apt_ds.models.tensor_parallel import Split
from apt_ds.pruning.allocation import Allocated, allocate
from apt_ds.pruning.budget_search import best_of_each, search
from apt_ds.pruning.limits import Rules
from tests.support import drawn_scores

TABLE = drawn_scores.anatomy(neurons=96, layers=4, heads=4)


class KnownDivergence:
    """What each removed block costs is known. A stage adds noise to it that shrinks with the tokens.

    spent: evaluations so far.
    """

    stages = 3

    def __init__(self, costs: np.ndarray, limit: int, noise: float = 0.0) -> None:
        self.costs, self.limit, self.spent = costs, limit, 0
        draw = np.random.default_rng(5)
        self.wrong = [np.exp(noise / (1 + 2 * n) * draw.normal(size=len(costs))) for n in range(4)]

    @property
    def left(self) -> int:
        return self.limit - self.spent

    def cost(self, stage: int) -> int:
        return (1, 4, 8)[stage]

    def probe_cost(self, number: int) -> int:
        return 1

    def divergence(self, keep: np.ndarray, stage: int) -> float:
        self.spent += self.cost(stage)
        return float((self.costs * self.wrong[1 + stage])[~keep].sum())

    def probe(self, keep: np.ndarray, number: int) -> float:
        self.spent += 1
        return float((self.costs * self.wrong[0])[~keep].sum())


def misled(table: Anatomy, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(costs, scores): scores that order the blocks of each site rightly, and compare sites wrongly."""
    costs = drawn_scores.scores("continuous", table, seed)
    draw, scores = np.random.default_rng(seed + 1), costs.copy()
    for _, span in block_slices(table.sizes):
        scores[span] *= np.exp(0.8 * draw.normal())
    return costs, scores


def searched(rules: Rules, noise: float = 0.0, limit: int = 200) -> tuple[Allocated, np.ndarray, KnownDivergence]:
    """The result, the scores' decision and the meter, at 60 % of the parameters."""
    costs, scores = misled(TABLE)
    budget = 0.6 * TABLE.num_parameters(TABLE.sizes)
    meter = KnownDivergence(costs, limit, noise)
    start = search(scores, TABLE, rules, budget)
    result = allocate(scores, start, TABLE, rules, budget, meter)
    assert TABLE.num_parameters(kept_sizes(TABLE.sizes, result.keep)) <= budget
    sizes = kept_sizes(TABLE.sizes, result.keep)
    # inside a site the scores choose
    assert np.array_equal(result.keep, best_of_each(scores, TABLE, sizes))
    for site, count in zip(TABLE.sites, sizes.counts, strict=True):
        assert count in rules.levels(site.kind, 96 if site.kind == "neuron" else 4)
    return result, start, meter


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("kinds", [("heads", "neurons"), ("neurons",), ("heads", "neurons", "hidden")])
def test_the_divergence_falls_most_of_the_way(kinds: tuple[str, ...], noise: float) -> None:
    rules = Rules(kinds, "adaptive", align_neurons=4, align_hidden=4)
    result, start, meter = searched(rules, noise)
    assert result.before == meter.divergence(start, 2) and result.after == meter.divergence(result.keep, 2)
    best = meter.divergence(search(meter.costs, TABLE, rules, 0.6 * TABLE.num_parameters(TABLE.sizes)), 2)
    assert result.accepted > 0 and result.moves > 0
    assert result.before - result.after > 0.6 * (result.before - best) > 0
    kept = dict(block_slices(TABLE.sizes))
    assert "hidden" in kinds or result.keep[kept[-1]].all()


@pytest.mark.parametrize("limit", [30, 47, 80])
def test_evaluations_have_a_limit(limit: int) -> None:
    rules = Rules(("heads", "neurons"), "adaptive", align_neurons=8)
    *_, meter = searched(rules, limit=limit)
    assert meter.spent <= limit


def test_sizes_of_several_gpus_and_empty_sublayers() -> None:
    """`searched` checks the sizes."""
    for split, empty in ((Split(gpus=2, heads=2, neurons=2), False), (Split(), True)):
        result, *_ = searched(Rules(("heads", "neurons"), "adaptive", align_neurons=8, empty=empty, split=split))
        assert result.accepted > 0


def test_right_scores_stay() -> None:
    """No candidate is better, so that the decision of the scores remains."""
    rules = Rules(("neurons",), "adaptive", align_neurons=4)
    costs, _ = misled(TABLE)
    budget = 0.6 * TABLE.num_parameters(TABLE.sizes)
    start = search(costs, TABLE, rules, budget)
    result = allocate(costs, start, TABLE, rules, budget, KnownDivergence(costs, 200))
    assert np.array_equal(result.keep, start) and (result.accepted, result.moves) == (0, 0)
    assert result.before == result.after


def test_a_candidate_must_win_at_every_stage() -> None:
    """The last stage disagrees with the others: nothing is accepted."""
    rules = Rules(("neurons",), "adaptive", align_neurons=4)
    costs, scores = misled(TABLE)
    budget = 0.6 * TABLE.num_parameters(TABLE.sizes)
    start = search(scores, TABLE, rules, budget)

    class Disagreeing(KnownDivergence):
        def divergence(self, keep: np.ndarray, stage: int) -> float:
            value = super().divergence(keep, stage)
            return -value if stage == 2 else value

    result = allocate(scores, start, TABLE, rules, budget, Disagreeing(costs, 300))
    assert np.array_equal(result.keep, start) and result.accepted == 0


def test_divergences_that_are_not_finite_decide_nothing() -> None:
    rules = Rules(("neurons",), "adaptive", align_neurons=4)
    costs, scores = misled(TABLE)
    budget = 0.6 * TABLE.num_parameters(TABLE.sizes)
    start = search(scores, TABLE, rules, budget)
    result = allocate(scores, start, TABLE, rules, budget, KnownDivergence(costs * np.inf, 300))
    assert np.array_equal(result.keep, start) and result.accepted == 0


def test_uniform_sizes_are_chosen_among_the_largest_that_fit() -> None:
    """Heads cost nothing here, so that the sizes with the fewest heads win."""
    rules = Rules(("heads", "neurons"), "uniform", align_neurons=4, slack=0.02)
    _, scores = misled(TABLE)
    costs = np.repeat([*(float(site.kind == "neuron") for site in TABLE.sites), 1.0], [*TABLE.sizes.counts, 32])
    budget = 0.6 * TABLE.num_parameters(TABLE.sizes)
    start = search(np.where(costs > 0, scores, 1e6 * scores), TABLE, rules, budget)
    meter = KnownDivergence(costs, 100)
    result = allocate(scores, start, TABLE, rules, budget, meter)
    sizes, before = (kept_sizes(TABLE.sizes, keep) for keep in (result.keep, start))
    assert len(set(sizes.counts[::2])) == len(set(sizes.counts[1::2])) == 1
    heads = dict(zip((site.kind for site in TABLE.sites), sizes.counts, strict=True))
    assert heads["head"] == 1 < before.counts[0] and heads["neuron"] > before.counts[1]
    assert 0.98 * budget <= TABLE.num_parameters(sizes) <= budget and meter.spent <= 100
