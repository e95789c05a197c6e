"""The interface of a score: what ranks blocks (METHOD.md section 3 and the baselines).

`Salience`, `Fisher`, `Flap` and `WandaSp` observe activations through hooks (`activation_hooks.py`). `Taylor` reads
weight gradients. `Obs` observes gradients and then the inputs of layers. `L0Gates` trains masks with the model.
`Random` reads nothing. `scorer_registry.py` makes the one that a run asks for.
"""

# a score overrides only the hooks that it needs
# ruff: noqa: B027

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apt_ds.models.blocks import Anatomy
from apt_ds.pruning.layer_walk import WalkBatch
from apt_ds.pruning.mask_values import MaskValues
from apt_ds.runtime import zero


class Scorer(ABC):
    """Scores of all blocks. A subclass overrides what its score needs. The base class observes nothing.

    `score_weight_gradients` and `score_layer_inputs` are called only on a score that asks for them.

    Attributes:
        abs_sums: fp32, what this rank's micro-batches of a step sum up. The caller adds all ranks' before `update`.
        uses_hooks: whether steps observe activations through hooks.
        uses_weight_gradients: whether `score_weight_gradients` gives the scores. All weights must then be trainable.
        reads_layer_inputs: whether `score_layer_inputs` completes the scores before a cut at once.
        stale: whether `measure_outliers` is due before the next `update`.
    """

    uses_hooks = False
    uses_weight_gradients = False
    reads_layer_inputs = False
    stale = False
    abs_sums: Tensor

    def __init__(self, anatomy: Anatomy, device: torch.device) -> None:
        self.device = device
        self.resize(anatomy)

    @abstractmethod
    def scores(self) -> np.ndarray:
        """The score of each block, float64 [blocks]. All zero: nothing was scored."""

    def resize(self, anatomy: Anatomy) -> None:
        """Forget all observations and take over an anatomy. Hooks must be off."""
        self.anatomy = anatomy
        self.abs_sums = torch.zeros(0, device=self.device)

    @abstractmethod
    def after_cut(self, anatomy: Anatomy, keep: np.ndarray) -> None:
        """Follow a cut. keep: bool over the old blocks. Hooks must be off."""

    def install(self, model: nn.Module) -> None:
        """Put hooks on `model`, after those of the masks."""

    def remove(self) -> None:
        """Remove the hooks."""

    def begin(
        self,
        attention_mask: Tensor,
        dtype: torch.dtype,
        example_offset: int = 0,
        decoder_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> None:
        """Describe the micro-batch of the next scored forward pass (see `ActivationHooks.begin`)."""

    def end(self) -> None:
        """Score no further forward pass."""

    def begin_step(self, step: int, target: float, phase: int) -> np.ndarray | None:
        """Before an update that scores blocks. `L0Gates` samples its gates.

        Args:
            step: updates done.
            target: the removed fraction of the prunable parameters that the policy asks for.
            phase: the update that ends the pruning phase.

        Returns:
            The masks of the update, which then collect gradients, float64 [blocks]. None: masks stay as they are.
        """
        return None

    def take_mask_gradients(self, masks: MaskValues) -> None:
        """After the backward passes of an update that scores blocks: take the gradients of `masks` into `abs_sums`."""

    def gates(self) -> np.ndarray | None:
        """The masks after an update, float64 [blocks], 0 to 1. None: the score decides no mask."""
        return None

    def notice(self, sparsity: float) -> str:
        """One line if the score has missed the budget at the end of the pruning phase, else ''.

        Args:
            sparsity: the fraction of the prunable parameters to remove.
        """
        return ""

    def update(self, gradient_scale: float) -> None:
        """Take `abs_sums` of a step, summed over ranks, into the scores.

        Args:
            gradient_scale: factor that makes the observed gradients those of the global mean loss. It undoes loss
                scaling and the average over ranks, so that scores do not depend on the split.
        """

    def discard(self) -> None:
        """Forget the observations of a step with a non-finite loss."""
        self.abs_sums.zero_()

    def measure_outliers(self, model: nn.Module) -> None:
        """Measure again what the score reads from weights. Collective under ZeRO stage 3."""

    def refresh(self) -> None:
        """Note that weights have changed since the last `measure_outliers`."""

    def score_weight_gradients(self, engine: zero.Engine) -> None:
        """Score by the weight gradients that an engine has after a boundary's backward. Collective."""
        raise NotImplementedError(f"{type(self).__name__} reads no weight gradients")

    def score_layer_inputs(self, model: nn.Module, batches: list[WalkBatch]) -> None:
        """Complete the scores of calibration steps by what layers read. Collective.

        Args:
            model: without an engine and without hooks.
            batches: this rank's calibration batches. All ranks have as many.
        """
        raise NotImplementedError(f"{type(self).__name__} reads no inputs of layers")

    def conclude(self, model: nn.Module) -> None:
        """Complete the scores of a calibration before they are used. Collective."""

    def refine(self, model: nn.Module, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Improve the decision of a cut at once. Collective.

        Args:
            model: the model before the cut.
            keep: bool [blocks], the decision of the search.

        Returns:
            The decision with equal counts at every site, bool [blocks], and the factors of the kept blocks, float64
            [blocks] (None: all 1).
        """
        return keep, None

    def removed_means(self) -> dict[int, np.ndarray]:
        """Means that biases take over at a cut at once (`bias_compensation.py`), by site, float64 [channels]."""
        return {}

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(values, tensors) of a checkpoint. A resumed run scores again for a cut at once."""
        return {}, {}

    def load_state_dict(self, kept_ids: np.ndarray, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take over `state_dict` after `resize`. kept_ids: the original numbers of all blocks, int64 [blocks]."""
