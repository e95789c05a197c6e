"""Which blocks remain under a parameter budget (METHOD.md section 4). Pure functions.

Kept counts per site are multiples of `align`, which hardware computes faster, and not below one unit, unless the rules
allow empty sublayers. Two structures:

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

import math
from dataclasses import dataclass

import numpy as np

from apt_ds.config.errors import UserError
from apt_ds.models.blocks import Anatomy, Sizes, block_slices, plural
from apt_ds.models.experts import ALIGNED
from apt_ds.models.tensor_parallel import WHOLE, Split
from apt_ds.models.writable_sizes import EVERY_SIZE, KINDS, Writable, _kinds_and_counts
from apt_ds.pruning import expert_search
from apt_ds.pruning.adaptive_search import Counts, DensityOrder, filled
from apt_ds.pruning.layer_sizes import by_layer
from apt_ds.pruning.ranking import Ranking
from apt_ds.pruning.uniform_search import SLACK, frontier, uniform_counts


@dataclass(frozen=True)
class Rules:
    """What a plan must respect.

    kinds: kinds of block that may be removed, some of `pruning_options.BLOCKS`; structure: 'uniform' or 'adaptive';
    align_neurons, align_hidden: kept counts are multiples of these, or the full count; writable: the sizes that a
    uniform plan may end in. Every adaptive plan is writable; empty: whether a sublayer may lose all its blocks;
    split: how kept heads and neurons divide between the GPUs that share the served model; slack: fraction of the
    budget that a uniform plan may leave unused if salience prefers it.
    """

    kinds: tuple[str, ...]
    structure: str
    align_neurons: int = 1
    align_hidden: int = 1
    writable: Writable = EVERY_SIZE
    empty: bool = False
    split: Split = WHOLE
    slack: float = SLACK

    def unit(self, kind: str) -> int:
        """Blocks of `kind` that are kept or removed together."""
        neurons = math.lcm(self.align_neurons, self.split.neurons)
        return {"head": self.split.heads, "expert": 1, "neuron": neurons, "hidden": self.align_hidden}[kind]

    def may_go(self, kind: str) -> bool:
        """Whether blocks of `kind` may be removed."""
        return plural(kind) in self.kinds

    def least(self, kind: str) -> int:
        """The fewest blocks of `kind` that a site may keep."""
        return 0 if self.empty and kind != "hidden" else self.unit(kind)

    def most(self, kind: str, count: int) -> int:
        """The most blocks of `kind` that a site of `count` may keep: all, unless they do not divide between GPUs."""
        return self.split.most(kind, count) if self.may_go(kind) else count

    def levels(self, kind: str, count: int) -> list[int]:
        """Counts that a site of `count` blocks of `kind` may keep, ascending: multiples of the unit, and the most."""
        if not self.may_go(kind):
            return [count]
        most = self.most(kind, count)
        return [*range(self.least(kind), most, self.unit(kind)), most]

    def level_of(self, kind: str, count: int, living: int) -> int:
        """The least count that a site of `count` blocks may keep and that has room for the `living` ones."""
        unit, most = self.unit(kind), self.most(kind, count)
        level = max(self.least(kind), -(-living // unit) * unit)
        if level <= most:
            return level
        return most if living <= most else count

    def whole_fits(self, anatomy: Anatomy) -> bool:
        """Whether a plan may keep all blocks."""
        splits = all(self.most(kind, count) == count for kind, count in _kinds_and_counts(anatomy))
        return splits and (self.structure != "uniform" or self.writable.holds(anatomy))


def default_align(anatomy: Anatomy) -> int:
    """The largest power of two up to 64 at which one unit of neurons in every layer is at most 1 % of the model.

    64 on real sizes (LLaMA 7B: 0.4 %), less on small models, whose budget could not be met closely otherwise. At least
    `ALIGNED` in a model with experts.
    """
    experts = {mixture.neuron_site: mixture.shape(anatomy.sizes)[0] for mixture in anatomy.experts}
    neurons = sum(site.weight * experts.get(i, 1) for i, site in enumerate(anatomy.sites) if site.kind == "neuron")
    share = neurons / anatomy.width(anatomy.sizes)
    least = ALIGNED if anatomy.experts else 1
    return max(a for a in (1, 2, 4, 8, 16, 32, 64) if a <= least or a * share <= SLACK)


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


def smallest_sizes(anatomy: Anatomy, rules: Rules) -> Sizes:
    """The smallest sizes allowed: one head, one unit of neurons, one unit of hidden dimensions. Zero where empty."""
    kinds = _kinds_and_counts(anatomy)
    lows = [min(rules.most(kind, count), rules.least(kind)) if rules.may_go(kind) else count for kind, count in kinds]
    return Sizes(tuple(lows[:-1]), lows[-1])


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


def cuttable(dead: np.ndarray, scores: np.ndarray, anatomy: Anatomy, rules: Rules) -> np.ndarray:
    """Blocks that remain when as many `dead` blocks are removed as alignment and structure allow.

    Every site keeps a permitted count. With uniform structure all sites of a kind keep the same count. The least
    salient dead blocks are removed first. The others stay masked.

    Args:
        dead: bool [blocks], fully masked blocks that the decision removes.
        scores: float64 [blocks].
        anatomy: the model as it is.
        rules: the limits of the plan.

    Returns:
        bool [blocks].
    """
    if anatomy.experts:
        return expert_search.cuttable(dead, scores, anatomy, rules)
    kept: list[int] = []
    kinds = _kinds_and_counts(anatomy)
    for (kind, full), (_, span) in zip(kinds, block_slices(anatomy.sizes), strict=True):
        living = full - int(np.count_nonzero(dead[span]))
        kept.append(rules.level_of(kind, full, living) if rules.may_go(kind) else full)
    if rules.structure == "uniform":
        kept = [max(n for n, (k, _) in zip(kept, kinds, strict=True) if k == kind) for kind, _ in kinds]
    # living blocks outrank dead ones
    ranking = scores - np.where(dead, scores.max() + 1.0 - min(scores.min(), 0.0), 0.0)
    return best_of_each(ranking, anatomy, Sizes(tuple(kept[:-1]), kept[-1]))


def _adaptive(scores: np.ndarray, sites: list[Ranking], anatomy: Anatomy, rules: Rules, budget: float) -> Sizes:
    """The longest prefix of the density order that fits, and what still fits after it."""
    kinds = [kind for kind, _ in _kinds_and_counts(anatomy)]
    counts = Counts(
        full=np.array([*anatomy.sizes.counts, anatomy.sizes.hidden]),
        most=np.array([rules.most(kind, count) for kind, count in _kinds_and_counts(anatomy)]),
        unit=np.array([rules.unit(kind) for kind in kinds]),
        least=np.array([rules.least(kind) for kind in kinds]),
        free=np.array([rules.may_go(kind) for kind in kinds]),
        weight=np.array([site.weight for site in anatomy.sites]),
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
    found = uniform_counts(*_uniform_choices(sites, anatomy, rules), budget, rules.writable, rules.slack)
    if found is None:
        raise UserError(
            f"no model of at most {budget:,.0f} prunable parameters can be written: {rules.writable.reason}. Change "
            "--align or --sparsity, allow more in --prune_blocks, or give --structure adaptive"
        )
    return _same_everywhere(found, anatomy)


def uniform_frontier(scores: np.ndarray, anatomy: Anatomy, rules: Rules, budget: float) -> list[Sizes]:
    """The largest uniform sizes that fit, see `uniform_search.frontier`. Those that keep most salience come first."""
    choices = _uniform_choices(rankings(scores, anatomy), anatomy, rules)
    return [_same_everywhere(counts, anatomy) for counts in frontier(*choices, budget, rules.writable, rules.slack)]


def _uniform_choices(
    sites: list[Ranking], anatomy: Anatomy, rules: Rules
) -> tuple[dict[str, list[Ranking]], dict[str, np.ndarray], dict[str, int]]:
    """By kind: the sites, the numbers of blocks that each may keep, and the parameters of a block at every site."""
    members: dict[str, list[Ranking]] = {kind: [] for kind in KINDS}
    for ranking, (kind, _) in zip(sites, _kinds_and_counts(anatomy), strict=True):
        members[kind].append(ranking)
    choices: dict[str, np.ndarray] = {}
    for kind, own in members.items():
        count = {len(ranking.values) for ranking in own}
        assert len(count) == 1, f"uniform structure needs the same number of {kind}s everywhere, got {count}"
        choices[kind] = np.array(rules.levels(kind, count.pop()))
    weights = {kind: sum(site.weight for site in anatomy.sites if site.kind == kind) for kind in KINDS[:2]}
    return members, choices, weights | {"hidden": 1}


def _same_everywhere(counts: dict[str, int], anatomy: Anatomy) -> Sizes:
    """Sizes from the number of blocks of each kind."""
    return Sizes(tuple(counts[site.kind] for site in anatomy.sites), counts["hidden"])


def describe(anatomy: Anatomy, sizes: Sizes) -> dict[str, object]:
    """Sizes for people: a count per kind, or a list where sites differ."""
    layers = by_layer(anatomy, sizes)
    sizes_by_kind: dict[str, object] = {"hidden": layers.pop("hidden"), "parameters": anatomy.num_parameters(sizes)}
    for name, counts in layers.items():
        sizes_by_kind[name] = counts[0] if len(set(counts)) == 1 else counts
    return sizes_by_kind
