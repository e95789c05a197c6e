"""The budget search for models with experts, whose prices are nested (METHOD.md section 4). Pure functions.

A layer has two numbers, experts and neurons of each (`expert_counts.py`). The price of one depends on the other.

adaptive: every number is of a layer. Blocks compete by density at the prices of the model as it is: an expert with all
    its neurons, and the i-th best neurons of all experts of the layer together.
uniform: all layers keep the same numbers. The search takes those that keep most score: that of the best neurons in the
    best experts.

No layer keeps fewer experts than the router chooses for a token.
"""

from __future__ import annotations

import heapq
from typing import Protocol

import numpy as np

from apt_ds.config.errors import UserError
from apt_ds.models.blocks import Anatomy
from apt_ds.models.writable_sizes import Writable
from apt_ds.pruning.expert_counts import Counts, best_blocks, mixture_gain


class Limits(Protocol):
    """What a plan must respect: `limits.Rules`."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of block that may be removed."""

    @property
    def structure(self) -> str:
        """'uniform' or 'adaptive'."""

    @property
    def writable(self) -> Writable:
        """The sizes that a uniform plan may end in."""

    @property
    def slack(self) -> float:
        """Fraction of the budget that a uniform plan may leave unused."""

    def unit(self, kind: str) -> int:
        """Blocks of a kind that are kept or removed together."""

    def most(self, kind: str, count: int) -> int:
        """The most blocks of a kind that a site of `count` may keep."""

    def may_go(self, kind: str) -> bool:
        """Whether blocks of a kind may be removed."""


def search(scores: np.ndarray, anatomy: Anatomy, rules: Limits, budget: float) -> np.ndarray:
    """Blocks to keep, as `budget_search.search`."""
    counts = Counts(anatomy)
    tops = np.array([_levels(counts, site, rules)[-1] for site in range(len(counts.full))])
    final = rules.structure != "uniform" or rules.writable.accepts(*_triple(counts, counts.full))
    if final and np.array_equal(tops, counts.full) and counts.parameters(counts.full) <= budget:
        return np.ones(anatomy.sizes.total(), dtype=bool)
    lows = np.array([_levels(counts, site, rules)[0] for site in range(len(counts.full))])
    if counts.parameters(lows) > budget:
        raise UserError(
            f"the budget of {budget:,.0f} parameters cannot be met: pruning {','.join(rules.kinds)} with alignment "
            f"{rules.unit('neuron')} (neurons) and {rules.unit('hidden')} (hidden), and at least "
            f"{anatomy.experts_per_token} experts in every layer, leaves at least {counts.parameters(lows):,} of "
            f"{counts.parameters(counts.full):,}. Lower --sparsity or --align, or allow more in --prune_blocks or "
            "--prune_scope"
        )
    finder = _uniform if rules.structure == "uniform" else _adaptive
    return best_blocks(scores, anatomy, finder(scores, counts, rules, budget))


def cuttable(removable: np.ndarray, scores: np.ndarray, anatomy: Anatomy, rules: Limits) -> np.ndarray:
    """Blocks that remain when as many removable blocks are removed as possible, as `budget_search.cuttable`."""
    counts = Counts(anatomy)
    remaining = counts.remaining(removable)
    levels = [[*_levels(counts, site, rules), int(counts.full[site])] for site in range(len(remaining))]
    kept = np.array([min(n for n in own if n >= least) for own, least in zip(levels, remaining, strict=True)])
    if rules.structure == "uniform":
        kinds = np.array(counts.kinds)
        kept = np.array([kept[kinds == kind].max() for kind in counts.kinds])
    # remaining blocks outrank removable ones
    ranking = scores - np.where(removable, scores.max() + 1.0 - min(scores.min(), 0.0), 0.0)
    return best_blocks(ranking, anatomy, kept)


def _levels(counts: Counts, site: int, rules: Limits) -> list[int]:
    """Numbers that a site may keep, ascending."""
    kind, full = counts.kinds[site], int(counts.full[site])
    unit = rules.unit(kind)
    least = counts.anatomy.experts_per_token if kind == "expert" else unit
    most = rules.most(kind, full)
    return [*range(least, most, unit), most] if rules.may_go(kind) else [full]


def _triple(counts: Counts, numbers: np.ndarray) -> list[np.ndarray]:
    """Heads, neurons and hidden dimensions of uniform numbers."""
    return [numbers[counts.kinds.index(kind)] for kind in ("head", "neuron", "hidden")]


def _adaptive(scores: np.ndarray, counts: Counts, rules: Limits, budget: float) -> np.ndarray:
    """The longest prefix of the density order that fits, and what still fits after it, densest first."""
    densities = [own / price for own, price in zip(counts.scores(scores), counts.prices(), strict=True)]
    levels = [np.array(_levels(counts, site, rules)) for site in range(len(densities))]
    site_of = np.repeat(np.arange(len(densities)), counts.full)
    order = site_of[np.argsort(-np.concatenate(densities), kind="stable")]

    def rounded(length: int) -> np.ndarray:
        raw = np.bincount(order[:length], minlength=len(levels))
        at = [max(0, int(np.searchsorted(own, n, side="right")) - 1) for own, n in zip(levels, raw, strict=True)]
        return np.array([own[i] for own, i in zip(levels, at, strict=True)])

    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        if counts.parameters(rounded(middle)) <= budget:
            low = middle
        else:
            high = middle - 1
    return _filled(rounded(low), densities, levels, counts, budget)


def _filled(
    numbers: np.ndarray, densities: list[np.ndarray], levels: list[np.ndarray], counts: Counts, budget: float
) -> np.ndarray:
    """Add units that still fit, densest first."""

    def entry(site: int) -> tuple[float, int, int]:
        above = int(levels[site][np.searchsorted(levels[site], numbers[site], side="right")])
        return -float(densities[site][numbers[site] : above].mean()), site, above

    queue = [entry(site) for site in range(len(numbers)) if numbers[site] < levels[site][-1]]
    heapq.heapify(queue)
    while queue:
        _, site, above = heapq.heappop(queue)
        grown = numbers.copy()
        grown[site] = above
        if counts.parameters(grown) <= budget:
            numbers = grown
            if above < levels[site][-1]:
                heapq.heappush(queue, entry(site))
    return numbers


def _uniform(scores: np.ndarray, counts: Counts, rules: Limits, budget: float) -> np.ndarray:
    """The best numbers of heads, experts, neurons and hidden dimensions, the same in every layer."""
    kinds = ("head", "neuron", "hidden")
    choices = {kind: np.array(_levels(counts, counts.kinds.index(kind), rules)) for kind in (*kinds, "expert")}
    params_per_hidden = {
        kind: sum(s.params_per_hidden for s in counts.anatomy.sites if s.kind == kind) for kind in kinds[:2]
    }
    mixtures, ordered = mixture_gain(scores, counts.anatomy), counts.scores(scores)
    gain = {
        kind: np.cumsum(sum(own for own, k in zip(ordered, counts.kinds, strict=True) if k == kind))[choices[kind] - 1]
        for kind in ("head", "hidden")
    }
    heads, neurons, hidden = np.meshgrid(*(choices[kind] for kind in kinds), indexing="ij", sparse=True)
    writable = rules.writable.accepts(heads, neurons, hidden)
    best: tuple[tuple[bool, float, float], dict[str, int]] | None = None
    for experts in choices["expert"].tolist():
        cost = (heads * params_per_hidden["head"] + neurons * params_per_hidden["neuron"] * experts) * hidden
        kept = mixtures[experts - 1, choices["neuron"] - 1]
        value = gain["head"][:, None, None] + kept[None, :, None] + gain["hidden"]
        fits = (cost <= budget) & writable
        if not fits.any():
            continue
        near = fits & (cost >= (1 - rules.slack) * budget)
        pool = near if near.any() else fits & (cost >= cost[fits].max())
        at = np.unravel_index(np.argmax(np.where(pool, value, -np.inf)), cost.shape)
        # a plan near the budget wins, then the larger value. Far from the budget the larger model wins
        rank = bool(near.any()), 0.0 if near.any() else float(cost[at]), float(value[at])
        if best is None or rank > best[0]:
            best = rank, {"expert": experts} | {k: int(choices[k][i]) for k, i in zip(kinds, at, strict=True)}
    if best is None:
        raise UserError(
            f"no model of at most {budget:,.0f} prunable parameters can be written: {rules.writable.reason}. Change "
            "--align or --sparsity, allow more in --prune_blocks, or give --structure adaptive"
        )
    return np.array([best[1][kind] for kind in counts.kinds])
