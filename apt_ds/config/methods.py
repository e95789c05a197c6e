"""What --method and --recipe mean in options."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from apt_ds.config.tasks import INSTRUCTIONS

Preset = dict[str, str | int | float | bool]

# what every baseline leaves out of apt
WITHOUT: Preset = {"rank_growth": "none", "distill": "none", "repair": "none", "allocate": "score", "scale_steps": 0}
# how the gates of CoFi are learnt
GATES: Preset = {**WITHOUT, "pruning": "gradual", "score": "l0", "distill": "layers", "teacher": "unpruned"}

# what a method means in options. The baselines share everything else with apt
METHODS: dict[str, Preset] = {
    "apt": {},
    "lora": {**WITHOUT, "pruning": "none"},
    "full": {**WITHOUT, "pruning": "none", "train": "all"},
    "lora_prune": {**WITHOUT, "pruning": "posttuning", "score": "fisher"},
    "prune_lora": {**WITHOUT, "pruning": "pretuning", "score": "taylor"},
    "flap": {**WITHOUT, "pruning": "pretuning", "score": "flap"},
    "wanda_sp": {**WITHOUT, "pruning": "pretuning", "score": "wanda_sp"},
    # cut before the last step: Kwon et al. tune no weight after it
    "mask_tuning": {**WITHOUT, "pruning": "posttuning", "pruning_phase": 1.0, "score": "fisher", "train": "all"},
    "prune_distill": {**GATES, "train": "all"},
    "lora_prune_distill": GATES,
    # apt with a part left out (the paper's Table 4)
    "apt_unpruned": {"pruning": "none", "distill": "none"},
    "apt_fixed_ranks": {"rank_growth": "none"},
    "apt_undistilled": {"distill": "none"},
    "apt_even_ranks": {"rank_growth": "even"},
}

# the methods of a sweep over sizes: all that prune, without the variants of apt
PRUNING_METHODS = tuple(
    name for name, options in METHODS.items() if options.get("pruning") != "none" and not name.startswith("apt_")
)

# what a recipe means in options, for every architecture. A preset keeps the settings of its task
RECIPES: dict[str, Preset] = {
    "default": {},
    "paper": {
        "salience_product": "batch",
        "kurtosis": "literal",
        "kurtosis_weight": 1.0,
        "calibration_average": "moving",
        "prune_blocks": "heads,neurons,hidden",
        "structure": "adaptive",
        "align": 1,
        "mask_step": 0.01,
        "optimizer_state": "reset",
        "teacher": "unpruned",
        "layer_match": "step",
    },
}


def language_model_cut(value: Callable[[str], Any]) -> Preset:
    """What the default recipe adds for a language model that is cut before it tunes (METHOD.md section 12).

    {} for all other runs, and where another option of the run does not support it or has a correction of its own.

    Args:
        value: the value of a flag, stated or not.
    """
    cut_first = value("task") == INSTRUCTIONS and value("pruning") == "pretuning" and value("sparsity")
    supported = value("score") not in ("fisher", "flap") and not value("scale_steps")
    return {"repair": "ls"} if cut_first and supported else {}


# what a recipe means in a comparison: epochs of full fine-tuning (0: as long as the other runs)
RECIPE_FULL_EPOCHS = {"default": 0.0, "paper": 10.0}
# and the batch sizes of inference for language models, by the most prunable parameters each is for
RECIPE_INFERENCE_BATCHES: dict[str, tuple[tuple[float, int], ...]] = {
    "default": (),
    "paper": ((1e10, 32), (math.inf, 4)),
}
