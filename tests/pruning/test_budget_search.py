"""Budget, alignment and structure of a plan (section 4)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import Anatomy, Sizes, block_slices, kept_sizes
from apt_ds.models.scope import competing_kinds
from apt_ds.pruning.budget_search import best_of_each, cuttable, search
from apt_ds.pruning.limits import Rules, smallest_sizes
from tests.support import tiny

ALL = ("heads", "neurons", "hidden")


def anatomy(neurons: int = 48) -> Anatomy:
    return anatomy_of(tiny.config("mha", num_hidden_layers=3, intermediate_size=neurons))


def scores(seed: int = 0, neurons: int = 48) -> np.ndarray:
    """Random densities of one scale for all kinds."""
    table = anatomy(neurons)
    return np.random.default_rng(seed).random(table.sizes.total()) * table.params_per_block(table.sizes)


@pytest.mark.parametrize("structure", ["uniform", "adaptive"])
@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("kinds", [ALL, ("heads", "neurons")])
def test_budget_is_met_from_below_and_closely(structure: str, sparsity: float, kinds: tuple[str, ...]) -> None:
    table = anatomy(neurons=400)
    budget = (1 - sparsity) * table.num_parameters(table.sizes)
    sizes = kept_sizes(table.sizes, search(scores(0, 400), table, Rules(kinds, structure), budget))
    assert 0.99 * budget <= table.num_parameters(sizes) <= budget


@pytest.mark.parametrize("structure", ["uniform", "adaptive"])
def test_alignment_and_floors(structure: str) -> None:
    table = anatomy()
    rules = Rules(ALL, structure, align_neurons=8, align_hidden=4)
    for sparsity in (0.2, 0.5, 0.8, 0.95):
        keep = search(scores(1), table, rules, (1 - sparsity) * table.num_parameters(table.sizes))
        sizes = kept_sizes(table.sizes, keep)
        assert sizes.hidden % 4 == 0 and sizes.hidden > 0
        assert all(n % 8 == 0 for n in sizes.counts[1::2]) and min(sizes.counts) > 0
        assert table.num_parameters(sizes) <= (1 - sparsity) * table.num_parameters(table.sizes)


def test_uniform_keeps_the_same_everywhere_and_adaptive_does_not() -> None:
    table = anatomy()
    budget = 0.5 * table.num_parameters(table.sizes)
    uniform = kept_sizes(table.sizes, search(scores(), table, Rules(ALL, "uniform"), budget))
    adaptive = kept_sizes(table.sizes, search(scores(), table, Rules(ALL, "adaptive"), budget))
    assert len(set(uniform.counts[0::2])) == len(set(uniform.counts[1::2])) == 1
    assert len(set(adaptive.counts[1::2])) > 1


def test_kinds_that_may_not_go_stay() -> None:
    table = anatomy()
    for structure in ("uniform", "adaptive"):
        keep = search(scores(), table, Rules(("neurons",), structure), 0.7 * table.num_parameters(table.sizes))
        sizes = kept_sizes(table.sizes, keep)
        assert sizes.hidden == 32 and set(sizes.counts[0::2]) == {4}


def test_density_order_decides_in_adaptive_search() -> None:
    """With neurons only, the kept set is the best prefix of the density order."""
    table, values = anatomy(), scores(2)
    budget = 0.6 * table.num_parameters(table.sizes)
    keep = search(values, table, Rules(("neurons",), "adaptive"), budget)
    neurons = np.concatenate(
        [np.arange(s.start, s.stop) for site, s in block_slices(table.sizes) if table.kind(site) == "neuron"]
    )
    ranking = neurons[np.argsort(-values[neurons])]
    count = int(keep[neurons].sum())
    assert set(ranking[:count]) == set(neurons[keep[neurons]])
    one_more = keep.copy()
    one_more[ranking[count]] = True
    assert table.num_parameters(kept_sizes(table.sizes, one_more)) > budget


def test_uniform_takes_the_triple_with_most_salience() -> None:
    table, values = anatomy(), scores(3)
    budget = 0.55 * table.num_parameters(table.sizes)
    rules = Rules(ALL, "uniform")
    best = 0.0
    for h, f, d in itertools.product(range(1, 5), range(1, 49), range(1, 33)):
        sizes = Sizes((h, f) * 3, d)
        if 0.99 * budget <= table.num_parameters(sizes) <= budget:
            best = max(best, values[best_of_each(values, table, sizes)].sum())
    assert values[search(values, table, rules, budget)].sum() == pytest.approx(best)


def test_a_budget_out_of_reach_says_so() -> None:
    table = anatomy()
    with pytest.raises(UserError, match=r"cannot be met: pruning neurons .* leaves at least [\d,]+ of"):
        search(scores(), table, Rules(("neurons",), "uniform"), 0.1 * table.num_parameters(table.sizes))
    smallest = table.num_parameters(smallest_sizes(table, Rules(ALL, "adaptive", 16, 8)))
    assert smallest == 8 * 3 * (2 * 8 * 2 + 16 * 3)


@pytest.mark.parametrize("structure", ["uniform", "adaptive"])
def test_cuttable_takes_only_dead_blocks_in_whole_units(structure: str) -> None:
    table, values = anatomy(), scores(4)
    removable = np.zeros(table.sizes.total(), dtype=bool)
    for site, span in block_slices(table.sizes):
        if table.kind(site) == "neuron":
            removable[span.start : span.start + 10 + 2 * site] = True
    keep = cuttable(removable, values, table, Rules(ALL, structure, align_neurons=8))
    assert (removable | keep).all() and not keep.all()
    counts = kept_sizes(table.sizes, keep).counts[1::2]
    assert all(n % 8 == 0 for n in counts)
    assert counts == ((40, 40, 40) if structure == "uniform" else (40, 32, 32))
    removable[: table.sizes.total()] = False
    assert cuttable(removable, values, table, Rules(ALL, structure)).all()


@pytest.mark.parametrize(
    ("kind", "task", "targets", "expected"),
    [
        ("mha", "instructions", "auto", ("heads", "hidden")),
        ("bert-classes", "sst2", "auto", ("heads", "neurons", "hidden")),
        ("t5", "sst2", "k", ("heads", "hidden")),
        ("t5-gated", "sst2", "gate", ("neurons", "hidden")),
    ],
)
def test_adapter_targets_decide_what_competes(kind: str, task: str, targets: str, expected: tuple[str, ...]) -> None:
    config = tiny.small(kind).config if kind in tiny.SMALL else tiny.config(kind)
    run = RunConfig(task=task, adapter_targets=targets, prune_blocks=",".join(ALL))
    assert competing_kinds(run, anatomy_of(config, tiny.TASKS[kind])) == ALL
    assert competing_kinds(run.replace(prune_scope="adapted"), anatomy_of(config, tiny.TASKS[kind])) == expected
