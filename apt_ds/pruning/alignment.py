"""The multiple that kept sizes keep to when `--align` is 0 (METHOD.md section 4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from apt_ds.config.errors import UserError
from apt_ds.models.blocks import Anatomy, kept_sizes
from apt_ds.pruning.budget_search import search
from apt_ds.pruning.limits import Rules, default_align

SERVED = 32  # bitsandbytes computes NF4 on a CPU for multiples of it only
QUANTIZED = 64  # the block that NF4 quantizes together
MISS = 0.02  # of the budget: the most that the larger step may leave unused
UNITS = 16  # the fewest units that a layer, or the stream, may consist of


def automatic_align(rules: Rules, anatomy: Anatomy, budget: float, wanted: int = SERVED) -> int:
    """The largest step up to `wanted` that the budget permits, or `default_align` where that is larger.

    The budget permits a step if blocks of equal density leave a model that misses the budget by at most `MISS`. Sizes
    of fewer than `UNITS` units are too coarse a choice.

    Args:
        rules: the limits of the plan. Their alignment does not matter.
        anatomy: the model before any cut.
        budget: parameters at the end of pruning.
        wanted: a power of two, at least `SERVED`.
    """
    least = default_align(anatomy)
    for align in _larger(least, wanted):
        if min(_competing(rules, anatomy), default=0) >= UNITS * align and _meets(rules, anatomy, budget, align):
            return align
    return least


def _larger(least: int, wanted: int) -> Iterator[int]:
    """Steps from `wanted` down to `SERVED` that are above `least`."""
    while wanted >= SERVED and wanted > least:
        yield wanted
        wanted //= 2


def _competing(rules: Rules, anatomy: Anatomy) -> list[int]:
    """The sizes that a plan reduces in steps: neurons of every sublayer or expert, and the hidden size."""
    experts = {mixture.neuron_site: mixture.shape(anatomy.sizes)[1] for mixture in anatomy.experts}
    sizes = [
        experts.get(number, count)
        for number, (site, count) in enumerate(zip(anatomy.sites, anatomy.sizes.counts, strict=True))
        if site.kind == "neuron" and rules.may_go("neuron")
    ]
    return [*sizes, anatomy.sizes.hidden] if rules.may_go("hidden") else sizes


def _meets(rules: Rules, anatomy: Anatomy, budget: float, align: int) -> bool:
    """Whether blocks of equal density, kept in this step, use the budget up to `MISS`."""
    scores = anatomy.params_per_block(anatomy.sizes)
    try:
        keep = search(scores, anatomy, replace(rules, align_neurons=align, align_hidden=align), budget)
    except UserError:
        return False
    return anatomy.num_parameters(kept_sizes(anatomy.sizes, keep)) >= (1 - MISS) * budget
