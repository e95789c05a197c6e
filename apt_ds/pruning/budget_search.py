"""Which blocks remain: density sort and bisection under a parameter budget (METHOD.md section 4). Pure functions.

Kept counts per site are multiples of `align`, which hardware computes faster, and never below one unit. Two structures:

adaptive: every block competes with every other, as in the paper. Bisection finds the longest prefix of the
    density order that fits. Units that still fit are then added, densest first.
uniform: every attention site keeps the same number of heads, every feed-forward site the same number of
    neurons, so that the result is an ordinary architecture. The i-th best units of all sites form one block.
    Among all count triples that fit, those that use the budget up to `SLACK` come first. The search takes the one of
    these that keeps most salience. Only triples that the family's configuration supports are candidates.

Models with experts have nested prices. `expert_search.py` searches them.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from apt_ds.config.errors import UserError
from apt_ds.models.blocks import Anatomy, Sizes, block_slices, kept_sizes, plural
from apt_ds.models.experts import ALIGNED
from apt_ds.models.writable_sizes import EVERY_SIZE, KINDS, Writable, _kinds_and_counts
from apt_ds.pruning import expert_search

SLACK = 0.01  # of the budget: how far below it a plan may end where alignment permits better


@dataclass(frozen=True)
class Rules:
    """What a plan must respect.

    kinds: kinds of block that may be removed, some of `option_groups.BLOCKS`; structure: 'uniform' or 'adaptive';
    align_neurons, align_hidden: kept counts are multiples of these, or the full count; writable: the sizes that a
    uniform plan may end in. Every adaptive plan is writable.
    """

    kinds: tuple[str, ...]
    structure: str
    align_neurons: int = 1
    align_hidden: int = 1
    writable: Writable = EVERY_SIZE

    def unit(self, kind: str) -> int:
        """Blocks of `kind` that are kept or removed together."""
        return {"head": 1, "expert": 1, "neuron": self.align_neurons, "hidden": self.align_hidden}[kind]

    def may_go(self, kind: str) -> bool:
        """Whether blocks of `kind` may be removed."""
        return plural(kind) in self.kinds


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


def levels(count: int, unit: int, fixed: bool) -> list[int]:
    """Counts that a site of `count` blocks may keep, ascending: multiples of `unit`, and `count`."""
    if fixed:
        return [count]
    return [*range(unit, count, unit), count]


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
    final = rules.structure != "uniform" or rules.writable.holds(anatomy)
    if final and anatomy.num_parameters(anatomy.sizes) <= budget:
        return np.ones(anatomy.sizes.total(), dtype=bool)
    smallest = anatomy.num_parameters(smallest_sizes(anatomy, rules))
    if smallest > budget:
        total = anatomy.num_parameters(anatomy.sizes)
        raise UserError(
            f"the budget of {budget:,.0f} parameters cannot be met: pruning {','.join(rules.kinds)} with alignment "
            f"{rules.align_neurons} (neurons) and {rules.align_hidden} (hidden) leaves at least {smallest:,} of "
            f"{total:,}. Lower --sparsity or --align, or allow more in --prune_blocks or --prune_scope"
        )
    finder = _uniform if rules.structure == "uniform" else _adaptive
    sizes = finder(scores, anatomy, rules, budget)
    return best_of_each(scores, anatomy, sizes)


def smallest_sizes(anatomy: Anatomy, rules: Rules) -> Sizes:
    """The smallest sizes allowed: one head, one unit of neurons, one unit of hidden dimensions."""
    lows = [levels(count, rules.unit(kind), not rules.may_go(kind))[0] for kind, count in _kinds_and_counts(anatomy)]
    return Sizes(tuple(lows[:-1]), lows[-1])


def best_of_each(scores: np.ndarray, anatomy: Anatomy, sizes: Sizes) -> np.ndarray:
    """Keep the `sizes` best-scored blocks of every site, bool [blocks]. Ties go to the lower index."""
    keep = np.zeros(anatomy.sizes.total(), dtype=bool)
    for (_, span), count in zip(block_slices(anatomy.sizes), [*sizes.counts, sizes.hidden], strict=True):
        keep[span.start + np.argsort(-scores[span], kind="stable")[:count]] = True
    return keep


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
        living = full - int(dead[span].sum())
        steps = levels(full, rules.unit(kind), not rules.may_go(kind))
        kept.append(next(level for level in steps if level >= living))
    if rules.structure == "uniform":
        kept = [max(n for n, (k, _) in zip(kept, kinds, strict=True) if k == kind) for kind, _ in kinds]
    # living blocks outrank dead ones
    ranking = scores - np.where(dead, scores.max() + 1.0 - min(scores.min(), 0.0), 0.0)
    return best_of_each(ranking, anatomy, Sizes(tuple(kept[:-1]), kept[-1]))


def _adaptive(scores: np.ndarray, anatomy: Anatomy, rules: Rules, budget: float) -> Sizes:
    density = scores / anatomy.params_per_block(anatomy.sizes)
    order = np.argsort(-density, kind="stable")
    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        if anatomy.num_parameters(_rounded(order[:middle], anatomy, rules)) <= budget:
            low = middle
        else:
            high = middle - 1
    return _fill(scores, anatomy, rules, budget, _rounded(order[:low], anatomy, rules))


def _rounded(kept: np.ndarray, anatomy: Anatomy, rules: Rules) -> Sizes:
    """Sizes of a set of blocks, each count rounded down to a level. Monotone in the set."""
    keep = np.zeros(anatomy.sizes.total(), dtype=bool)
    keep[kept] = True
    raw = kept_sizes(anatomy.sizes, keep)
    counts = []
    for (kind, full), count in zip(_kinds_and_counts(anatomy), [*raw.counts, raw.hidden], strict=True):
        unit = rules.unit(kind)
        fixed = count == full or not rules.may_go(kind)
        counts.append(full if fixed else min(full, max(unit, count // unit * unit)))
    return Sizes(tuple(counts[:-1]), counts[-1])


def _fill(scores: np.ndarray, anatomy: Anatomy, rules: Rules, budget: float, sizes: Sizes) -> Sizes:
    """Add units that still fit, densest first."""
    full = [n for _, n in _kinds_and_counts(anatomy)]
    now = [*sizes.counts, sizes.hidden]
    prices = anatomy.params_per_block(anatomy.sizes)
    ranked = [np.sort(scores[span])[::-1] / prices[span.start] for _, span in block_slices(anatomy.sizes)]
    units = [rules.unit(kind) for kind, _ in _kinds_and_counts(anatomy)]

    def entry(i: int) -> tuple[float, int]:
        return -float(ranked[i][now[i] : now[i] + units[i]].mean()), i

    queue = [entry(i) for i in range(len(now)) if now[i] < full[i]]
    heapq.heapify(queue)
    while queue:
        _, i = heapq.heappop(queue)
        grown = [*now]
        grown[i] = min(full[i], now[i] + units[i])
        if anatomy.num_parameters(Sizes(tuple(grown[:-1]), grown[-1])) <= budget:
            now = grown
            if now[i] < full[i]:
                heapq.heappush(queue, entry(i))
    return Sizes(tuple(now[:-1]), now[-1])


def _uniform(scores: np.ndarray, anatomy: Anatomy, rules: Rules, budget: float) -> Sizes:
    """The best (heads, neurons, hidden) triple, the same at every site of a kind."""
    gain: dict[str, np.ndarray] = {}
    choices: dict[str, np.ndarray] = {}
    weight: dict[str, int] = {}
    for kind in KINDS:
        members = [span for site, span in block_slices(anatomy.sizes) if anatomy.kind(site) == kind]
        count = {span.stop - span.start for span in members}
        assert len(count) == 1, f"uniform structure needs the same number of {kind}s everywhere, got {count}"
        total = sum(np.sort(scores[span])[::-1] for span in members)
        choices[kind] = np.array(levels(count.pop(), rules.unit(kind), not rules.may_go(kind)))
        gain[kind] = np.cumsum(total)[choices[kind] - 1]
        weight[kind] = sum(site.weight for site in anatomy.sites if site.kind == kind)
    width = choices["head"][:, None] * weight["head"] + choices["neuron"][None, :] * weight["neuron"]
    cost = width[:, :, None] * choices["hidden"][None, None, :]
    value = gain["head"][:, None, None] + gain["neuron"][None, :, None] + gain["hidden"][None, None, :]
    grid = (choices["head"][:, None, None], choices["neuron"][None, :, None], choices["hidden"][None, None, :])
    fits = (cost <= budget) & rules.writable.accepts(*grid)
    if not fits.any():
        raise UserError(
            f"no model of at most {budget:,.0f} prunable parameters can be written: {rules.writable.reason}. Change "
            "--align or --sparsity, allow more in --prune_blocks, or give --structure adaptive"
        )
    near = fits & (cost >= (1 - SLACK) * budget)
    pool = near if near.any() else fits & (cost >= cost[fits].max())
    h, f, d = np.unravel_index(np.argmax(np.where(pool, value, -np.inf)), cost.shape)
    heads, neurons = int(choices["head"][h]), int(choices["neuron"][f])
    counts = tuple(heads if site.kind == "head" else neurons for site in anatomy.sites)
    return Sizes(counts, int(choices["hidden"][d]))


def describe(anatomy: Anatomy, sizes: Sizes) -> dict[str, object]:
    """Sizes for people: a count per kind, or a list where sites differ."""
    sizes_by_kind: dict[str, object] = {"hidden": sizes.hidden, "parameters": anatomy.num_parameters(sizes)}
    mixtures = {mixture.neuron_site: mixture.shape(sizes)[1] for mixture in anatomy.experts}
    numbers = [mixtures.get(site, n) for site, n in enumerate(sizes.counts)]
    for kind, name in (("head", "heads"), ("neuron", "neurons"), *([("expert", "experts")] if anatomy.experts else [])):
        counts = [n for s, n in zip(anatomy.sites, numbers, strict=True) if s.kind == kind]
        sizes_by_kind[name] = counts[0] if len(set(counts)) == 1 else counts
    return sizes_by_kind
