"""Options that had another name before, and what they are called now."""

from __future__ import annotations

RENAMED_FLAGS = {
    "hold_cuts": "--defer_cuts",
    "product": "--salience_product per_example or batch",
    "outlier": "--kurtosis",
    "outlier_weight": "--kurtosis_weight",
    "growth": "--rank_growth importance, even or none",
    "tune": "--train",
    "adjust_every": "--prune_every",
    "prune_ratio": "--pruning_phase",
    "max_bad_steps": "--max_nonfinite_steps",
    "moments": "--optimizer_state",
    "inside": "--intra_node_gbps",
    "between": "--inter_node_gbps",
}


def renamed(name: str) -> str:
    """The present name of an option that was renamed, with or without dashes. Empty for any other name."""
    return RENAMED_FLAGS.get(name.lstrip("-").lower().replace("-", "_"), "")
