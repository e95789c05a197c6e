"""Which kinds of block compete for removal."""

from __future__ import annotations

from apt_ds.config.run_config import RunConfig
from apt_ds.models.blocks import HIDDEN, Anatomy, plural


def competing_kinds(run: RunConfig, anatomy: Anatomy) -> tuple[str, ...]:
    """The kinds of block that a run may remove: some of heads, neurons, hidden, in this order.

    With `--prune_scope adapted`, heads and neurons compete only if their sublayers have an adapter. All layers have the
    same adapter targets, so the answer depends on the kind only.
    """
    if run.pruning.prune_scope == "all":
        return run.pruning.block_kinds
    paths = {path for name in run.targets for path in anatomy.targets.get(name, ())}
    axes = [axis for slot in anatomy.slots if slot.path in paths for axis in (slot.rows, slot.columns)]
    adapted = {plural(anatomy.kind(axis.site)) for axis in axes if axis is not None and axis.site != HIDDEN}
    return tuple(kind for kind in run.pruning.block_kinds if kind == plural("hidden") or kind in adapted)
