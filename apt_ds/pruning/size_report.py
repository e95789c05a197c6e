"""The sizes that a run has reached, for its log and its summary."""

from __future__ import annotations

from apt_ds.pruning.layer_sizes import by_layer, describe
from apt_ds.pruning.pruner import Pruner


def progress(pruner: Pruner, step: int) -> dict[str, float]:
    """Sizes after `step` updates, for the log."""
    target = pruner.policy.kept_fraction(step, pruner.cut_done)
    return {"kept": pruner.kept(), "kept_parameters": pruner.kept_parameters(), "target": target}


def summary(pruner: Pruner) -> dict[str, object]:
    """Actual sizes next to the target, for people."""
    sparsity, anatomy = pruner.run.pruning.sparsity, pruner.anatomy
    return {
        "target_kept": 1.0 - sparsity if pruner.run.pruning.prunes else 1.0,
        "kept": pruner.kept(),
        "prunable_parameters": pruner.kept_parameters(),
        "align": pruner.rules.align_neurons,
        "sizes": describe(anatomy, anatomy.sizes),
        "layers": {"before": by_layer(anatomy, pruner.original_sizes), "after": by_layer(anatomy, anatomy.sizes)},
    }
