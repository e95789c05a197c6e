"""The search by its definition, over whole orders and whole grids. Tests compare the fast searches with it."""

from __future__ import annotations

import heapq

import numpy as np

from apt_ds.config.errors import UserError
from apt_ds.models.blocks import Anatomy, Sizes, block_slices, kept_sizes, plural
from apt_ds.models.writable_sizes import KINDS
from apt_ds.pruning.budget_search import _with_survivors
from apt_ds.pruning.limits import SLACK, Rules, smallest_sizes


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
    if rules.empty:
        scores = _with_survivors(scores, anatomy, rules)
    finder = _uniform if rules.structure == "uniform" else _adaptive
    sizes = finder(scores, anatomy, rules, budget)
    for kind in ("head", "neuron"):
        if not any(n for site, n in zip(anatomy.sites, sizes.counts, strict=True) if site.kind == kind):
            raise UserError(
                f"the budget of {budget:,.0f} parameters leaves no {plural(kind)} in any layer: lower --sparsity, or "
                "leave --allow_empty_layers out"
            )
    return best_of_each(scores, anatomy, sizes)


def best_of_each(scores: np.ndarray, anatomy: Anatomy, sizes: Sizes) -> np.ndarray:
    """Keep the `sizes` best-scored blocks of every site, bool [blocks]. Ties go to the lower index."""
    keep = np.zeros(anatomy.sizes.total(), dtype=bool)
    for (_, span), count in zip(block_slices(anatomy.sizes), [*sizes.counts, sizes.hidden], strict=True):
        keep[span.start + np.argsort(-scores[span], kind="stable")[:count]] = True
    return keep


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
    for (kind, full), count in zip(anatomy.kinds_and_counts(), [*raw.counts, raw.hidden], strict=True):
        unit = rules.unit(kind)
        fixed = count == full or not rules.may_go(kind)
        counts.append(full if fixed else min(full, max(rules.least(kind), count // unit * unit)))
    return Sizes(tuple(counts[:-1]), counts[-1])


def _fill(scores: np.ndarray, anatomy: Anatomy, rules: Rules, budget: float, sizes: Sizes) -> Sizes:
    """Add units that still fit, densest first."""
    full = [n for _, n in anatomy.kinds_and_counts()]
    now = [*sizes.counts, sizes.hidden]
    prices = anatomy.params_per_block(anatomy.sizes)
    ranked = [np.sort(scores[span])[::-1] / prices[span.start] for _, span in block_slices(anatomy.sizes)]
    units = [rules.unit(kind) for kind, _ in anatomy.kinds_and_counts()]

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
    params_per_hidden: dict[str, int] = {}
    for kind in KINDS:
        members = [span for site, span in block_slices(anatomy.sizes) if anatomy.kind(site) == kind]
        count = {span.stop - span.start for span in members}
        assert len(count) == 1, f"uniform structure needs the same number of {kind}s everywhere, got {count}"
        total = sum(np.sort(scores[span])[::-1] for span in members)
        choices[kind] = np.array(rules.levels(kind, count.pop()))
        gain[kind] = np.cumsum(total)[choices[kind] - 1]
        params_per_hidden[kind] = sum(site.params_per_hidden for site in anatomy.sites if site.kind == kind)
    width = (
        choices["head"][:, None] * params_per_hidden["head"] + choices["neuron"][None, :] * params_per_hidden["neuron"]
    )
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
