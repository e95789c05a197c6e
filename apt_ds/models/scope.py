"""Which kinds of block compete for removal."""

from __future__ import annotations

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.models.blocks import HIDDEN, Anatomy, plural
from apt_ds.models.experts import ALIGNED


def competing_kinds(run: RunConfig, anatomy: Anatomy) -> tuple[str, ...]:
    """The kinds of block that a run may remove: some of `BLOCKS` of `config.pruning_options`, in this order.

    With `--prune_scope adapted`, all but hidden dimensions compete only if their sublayers have an adapter. All layers
    have the same adapter targets, so the answer depends on the kind only.
    """
    if run.pruning.prune_scope == "all":
        return run.pruning.block_kinds
    paths = {path for name in run.targets for path in anatomy.targets.get(name, ())}
    axes = [axis for slot in anatomy.slots if slot.path in paths for axis in (slot.rows, slot.columns)]
    adapted = {plural(anatomy.kind(axis.site)) for axis in axes if axis is not None and axis.site != HIDDEN}
    return tuple(kind for kind in run.pruning.block_kinds if kind == plural("hidden") or kind in adapted)


def check_experts(run: RunConfig, anatomy: Anatomy) -> None:
    """Check the options that a mixture of experts decides.

    Raises:
        UserError: experts may be removed and there are none, or an option does not support experts.
    """
    if not anatomy.experts:
        if run.pruning.prunes and plural("expert") in run.pruning.block_kinds:
            raise UserError(
                f"--prune_blocks {run.pruning.prune_blocks}: the model has no experts; "
                "give some of heads, neurons, hidden"
            )
        return
    unknown = [name for name in run.targets if name not in anatomy.targets]
    if unknown and run.optim.trainable == "adapters":
        raise UserError(
            f"--adapter_targets {','.join(unknown)}: the experts of this model have no adapters; "
            f"give some of {','.join(anatomy.targets)}"
        )
    if run.pruning.prunes and run.pruning.align % ALIGNED:
        raise UserError(
            f"--align {run.pruning.align}: transformers computes experts of sizes that are multiples of {ALIGNED} "
            f"only; give a multiple of {ALIGNED}, or 0"
        )
    if run.pruning.prunes and (run.pruning.score in ("fisher", "obs", "l0") or run.pruning.scores_inputs):
        raise UserError(
            f"--score {run.pruning.score} does not support a mixture of experts; give salience, taylor or random"
        )
    if run.model.base_bits != 16:
        raise UserError(
            f"--base_bits {run.model.base_bits}: bitsandbytes quantizes linear layers only, and the experts of this "
            "model are none; give --base_bits 16"
        )
