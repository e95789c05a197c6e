"""Which blocks remain under a parameter budget (METHOD.md section 4). Pure functions.

`limits.py` says which numbers of blocks a site may keep. Two structures:

adaptive (`adaptive_search.py`): every block competes with every other, as in the paper. Bisection finds the longest
    prefix of the density order that fits. Units that still fit are then added, densest first.
uniform (`uniform_search.py`): every attention site keeps the same number of heads, every feed-forward site the same
    number of neurons, so that the result is an ordinary architecture. The i-th best units of all sites form one block.
    Among all count triples that fit, those that use the budget up to `SLACK` come first. The search takes the one of
    these that keeps most salience. Only triples that the family's configuration supports are candidates.

Both sort a site only near the ranks that decide (`ranking.py`). The search runs between two steps, while a GPU waits.
Models with experts have nested prices. `expert_search.py` searches them.
"""

from __future__ import annotations

import numpy as np

from apt_ds.config.errors import UserError
from apt_ds.models.blocks import Anatomy, Sizes, block_slices, plural
from apt_ds.models.writable_sizes import KINDS
from apt_ds.pruning import expert_search
from apt_ds.pruning.adaptive_search import Counts, DensityOrder, filled
from apt_ds.pruning.limits import Rules, smallest_sizes
from apt_ds.pruning.ranking import Ranking
from apt_ds.pruning.uniform_search import frontier, uniform_counts


def search(scores: np.ndarray, anatomy: Anatomy, rules: Rules, budget: float) -> np.ndarray:
    """Blocks to keep, such that the model that remains has at most `budget` prunable parameters.

    Args:
        scores: salience of each block, float64 [blocks]. Density is salience per parameter.
        anatomy: the model as it is.
        rules: the limits of the plan.
        budget: parameters.

    Returns:
        bool [blocks].

    Raises:
        UserError: the smallest model that the rules allow exceeds the budget, or no model that fits can be written.
    """
    if anatomy.experts:
        return expert_search.search(scores, anatomy, rules, budget)
    if rules.whole_fits(anatomy) and anatomy.num_parameters(anatomy.sizes) <= budget:
        return np.ones(anatomy.sizes.total(), dtype=bool)
    smallest = anatomy.num_parameters(smallest_sizes(anatomy, rules))
    if smallest > budget:
        total = anatomy.num_parameters(anatomy.sizes)
        raise UserError(
            f"the budget of {budget:,.0f} parameters cannot be met: pruning {','.join(rules.kinds)} with alignment "
            f"{rules.unit('neuron')} (neurons) and {rules.align_hidden} (hidden){rules.split} leaves at least "
            f"{smallest:,} of {total:,}. Lower --sparsity or --align, or allow more in --prune_blocks or --prune_scope"
        )
    if rules.empty:
        scores = _with_survivors(scores, anatomy, rules)
    sites = rankings(scores, anatomy)
    if rules.structure == "uniform":
        sizes = _uniform(sites, anatomy, rules, budget)
    else:
        sizes = _adaptive(scores, sites, anatomy, rules, budget)
    for kind in ("head", "neuron"):
        if not any(n for site, n in zip(anatomy.sites, sizes.counts, strict=True) if site.kind == kind):
            raise UserError(
                f"the budget of {budget:,.0f} parameters leaves no {plural(kind)} in any layer: lower --sparsity, or "
                "leave --allow_empty_layers out"
            )
    return _best_of_each(sites, sizes)


def _with_survivors(scores: np.ndarray, anatomy: Anatomy, rules: Rules) -> np.ndarray:
    """Scores by which one unit of heads and one of neurons come first: the best unit of any sublayer."""
    scores = scores.copy()
    for kind in ("head", "neuron"):
        units = []
        for site, span in block_slices(anatomy.sizes):
            if anatomy.kind(site) == kind and span.stop > span.start:
                best = span.start + np.argsort(-scores[span], kind="stable")[: rules.unit(kind)]
                units.append((scores[best].mean(), best))
        scores[max(units, key=lambda unit: unit[0])[1]] = np.inf
    return scores


def rankings(scores: np.ndarray, anatomy: Anatomy) -> list[Ranking]:
    """The scores of every site, then of the hidden dimensions, to be sorted where needed. scores: float64 [blocks]."""
    with np.errstate(over="ignore"):
        single = scores.astype(np.float32)
    # scores that were made in fp32 are sorted in fp32, which is faster
    values = single if (single == scores).all() else scores
    return [Ranking(values[span]) for _, span in block_slices(anatomy.sizes)]


def best_of_each(scores: np.ndarray, anatomy: Anatomy, sizes: Sizes) -> np.ndarray:
    """Keep the `sizes` best-scored blocks of every site, bool [blocks]. Ties go to the lower index."""
    return _best_of_each(rankings(scores, anatomy), sizes)


def _best_of_each(sites: list[Ranking], sizes: Sizes) -> np.ndarray:
    return np.concatenate([site.best(n) for site, n in zip(sites, [*sizes.counts, sizes.hidden], strict=True)])


def cuttable(removable: np.ndarray, scores: np.ndarray, anatomy: Anatomy, rules: Rules) -> np.ndarray:
    """Blocks that remain when as many `removable` blocks are removed as alignment and structure allow.

    Every site keeps a permitted count. With uniform structure all sites of a kind keep the same count. The least
    salient removable blocks are removed first. The others stay masked.

    Args:
        removable: bool [blocks], fully masked blocks that the decision removes.
        scores: float64 [blocks].
        anatomy: the model as it is.
        rules: the limits of the plan.

    Returns:
        bool [blocks].
    """
    if anatomy.experts:
        return expert_search.cuttable(removable, scores, anatomy, rules)
    kept: list[int] = []
    kinds = anatomy.kinds_and_counts()
    for (kind, full), (_, span) in zip(kinds, block_slices(anatomy.sizes), strict=True):
        remaining = full - int(np.count_nonzero(removable[span]))
        kept.append(rules.level_of(kind, full, remaining) if rules.may_go(kind) else full)
    if rules.structure == "uniform":
        kept = [max(n for n, (k, _) in zip(kept, kinds, strict=True) if k == kind) for kind, _ in kinds]
    # remaining blocks outrank removable ones
    ranking = scores - np.where(removable, scores.max() + 1.0 - min(scores.min(), 0.0), 0.0)
    return best_of_each(ranking, anatomy, Sizes(tuple(kept[:-1]), kept[-1]))


def _adaptive(scores: np.ndarray, sites: list[Ranking], anatomy: Anatomy, rules: Rules, budget: float) -> Sizes:
    """The longest prefix of the density order that fits, and what still fits after it."""
    kinds = [kind for kind, _ in anatomy.kinds_and_counts()]
    counts = Counts(
        full=np.array([*anatomy.sizes.counts, anatomy.sizes.hidden]),
        most=np.array([rules.most(kind, count) for kind, count in anatomy.kinds_and_counts()]),
        unit=np.array([rules.unit(kind) for kind in kinds]),
        least=np.array([rules.least(kind) for kind in kinds]),
        free=np.array([rules.may_go(kind) for kind in kinds]),
        params_per_hidden=np.array([site.params_per_hidden for site in anatomy.sites]),
    )
    prices, density = anatomy.params_per_block_of_site(anatomy.sizes), np.empty(len(scores))
    for price, (_, span) in zip(prices, block_slices(anatomy.sizes), strict=True):
        np.divide(scores[span], price, out=density[span])
    prefix = DensityOrder(density, counts).longest_prefix(budget, sites)
    return _sizes(filled(prefix, sites, prices, counts, budget))


def _sizes(numbers: np.ndarray) -> Sizes:
    """Sizes from the number of blocks of every site, then of hidden dimensions."""
    *counts, hidden = numbers.tolist()
    return Sizes(tuple(counts), hidden)


def _uniform(sites: list[Ranking], anatomy: Anatomy, rules: Rules, budget: float) -> Sizes:
    """The best numbers of heads, neurons and hidden dimensions, the same at every site of a kind."""
    counts = uniform_counts(*_uniform_choices(sites, anatomy, rules), budget, rules.writable, rules.slack)
    if counts is None:
        raise UserError(
            f"no model of at most {budget:,.0f} prunable parameters can be written: {rules.writable.reason}. Change "
            "--align or --sparsity, allow more in --prune_blocks, or give --structure adaptive"
        )
    return _same_everywhere(counts, anatomy)


def uniform_frontier(scores: np.ndarray, anatomy: Anatomy, rules: Rules, budget: float) -> list[Sizes]:
    """The largest uniform sizes that fit, see `uniform_search.frontier`. Those that keep most salience come first."""
    choices = _uniform_choices(rankings(scores, anatomy), anatomy, rules)
    return [_same_everywhere(counts, anatomy) for counts in frontier(*choices, budget, rules.writable, rules.slack)]


def _uniform_choices(
    sites: list[Ranking], anatomy: Anatomy, rules: Rules
) -> tuple[dict[str, list[Ranking]], dict[str, np.ndarray], dict[str, int]]:
    """By kind: the sites, the numbers of blocks that each may keep, and the parameters of a block at every site."""
    members: dict[str, list[Ranking]] = {kind: [] for kind in KINDS}
    for ranking, (kind, _) in zip(sites, anatomy.kinds_and_counts(), strict=True):
        members[kind].append(ranking)
    choices: dict[str, np.ndarray] = {}
    for kind, own in members.items():
        count = {len(ranking.values) for ranking in own}
        assert len(count) == 1, f"uniform structure needs the same number of {kind}s everywhere, got {count}"
        choices[kind] = np.array(rules.levels(kind, count.pop()))
    params_per_hidden = {
        kind: sum(site.params_per_hidden for site in anatomy.sites if site.kind == kind) for kind in KINDS[:2]
    }
    return members, choices, params_per_hidden | {"hidden": 1}


def _same_everywhere(counts: dict[str, int], anatomy: Anatomy) -> Sizes:
    """Sizes from the number of blocks of each kind."""
    return Sizes(tuple(counts[site.kind] for site in anatomy.sites), counts["hidden"])
