"""The limits of a plan: which numbers of blocks a site may keep (METHOD.md section 4). Pure functions.

Kept counts per site are multiples of `align`, which hardware computes faster, and not below one unit, unless the rules
allow empty sublayers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from apt_ds.models.blocks import Anatomy, Sizes, plural
from apt_ds.models.experts import ALIGNED
from apt_ds.models.tensor_parallel import WHOLE, Split
from apt_ds.models.writable_sizes import EVERY_SIZE, Writable

SLACK = 0.01  # of the budget: how far below it a plan may end where alignment permits better


@dataclass(frozen=True)
class Rules:
    """What a plan must respect.

    Attributes:
        kinds: kinds of block that may be removed, some of `pruning_options.BLOCKS`.
        structure: 'uniform' or 'adaptive'.
        align_neurons: kept counts of neurons are multiples of this, or the full count.
        align_hidden: the same for hidden dimensions.
        writable: the sizes that a uniform plan may end in. Every adaptive plan is writable.
        empty: whether a sublayer may lose all its blocks.
        split: how kept heads and neurons divide between the GPUs that share the served model.
        slack: fraction of the budget that a uniform plan may leave unused if salience prefers it.
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

    def level_of(self, kind: str, count: int, remaining: int) -> int:
        """The least count that a site of `count` blocks may keep and that has room for the `remaining` ones."""
        unit, most = self.unit(kind), self.most(kind, count)
        level = max(self.least(kind), -(-remaining // unit) * unit)
        if level <= most:
            return level
        return most if remaining <= most else count

    def whole_fits(self, anatomy: Anatomy) -> bool:
        """Whether a plan may keep all blocks."""
        splits = all(self.most(kind, count) == count for kind, count in anatomy.kinds_and_counts())
        return splits and (self.structure != "uniform" or self.writable.holds(anatomy))


def default_align(anatomy: Anatomy) -> int:
    """The largest power of two up to 64 at which one unit of neurons in every layer is at most 1 % of the model.

    64 on real sizes (LLaMA 7B: 0.4 %), less on small models, whose budget could not be met closely otherwise. At least
    `ALIGNED` in a model with experts.
    """
    experts = {mixture.neuron_site: mixture.shape(anatomy.sizes)[0] for mixture in anatomy.experts}
    neurons = sum(
        site.params_per_hidden * experts.get(i, 1) for i, site in enumerate(anatomy.sites) if site.kind == "neuron"
    )
    share = neurons / anatomy.width(anatomy.sizes)
    least = ALIGNED if anatomy.experts else 1
    return max(a for a in (1, 2, 4, 8, 16, 32, 64) if a <= least or a * share <= SLACK)


def smallest_sizes(anatomy: Anatomy, rules: Rules) -> Sizes:
    """The smallest sizes allowed: one head, one unit of neurons, one unit of hidden dimensions. Zero where empty."""
    kinds = anatomy.kinds_and_counts()
    lows = [min(rules.most(kind, count), rules.least(kind)) if rules.may_go(kind) else count for kind, count in kinds]
    return Sizes(tuple(lows[:-1]), lows[-1])
