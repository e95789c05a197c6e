"""When a run scores blocks, moves masks and cuts (METHOD.md section 4). Pure functions of steps, masks and decisions.

A policy knows the options of a run and its number of steps. It never sees a model, a score or another rank. A step is
the number of optimizer updates done.

`policies.py` has the policies that prune.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from apt_ds.config.errors import UserError


class MaskAction(Enum):
    """What happens to decision and masks after an update."""

    NONE = "leave both as they are"
    DECIDE = "decide, and leave the masks: a cut at once sets them"
    MOVE = "move the masks towards the decision"
    DECIDE_AND_MOVE = "decide again, then move the masks towards the decision"


class CutAction(Enum):
    """What is removed after an update."""

    NONE = "remove nothing"
    FULLY_MASKED = "remove blocks whose mask is 0, as many as alignment and structure allow"
    DECISION = "remove every block that the decision removes, and the masks with them"
    UNMASKED = "remove every block that the decision removes, whose masks are 1 until then"
    FINISH = "remove the masks only: earlier cuts removed all blocks that the decision removes"


@dataclass(frozen=True)
class Policy:
    """What `Pruner` asks. All answers are the same on all ranks. The base class orders nothing.

    Attributes:
        phase: the update that ends the pruning phase. Ranks grow during the phase, even where nothing is pruned.
        start: updates before the phase.
    """

    phase: int
    start: int = field(default=0, kw_only=True)

    @property
    def cut_step(self) -> int | None:
        """The update before which all blocks are removed at once, None for no such update."""
        return None

    def kept_fraction(self, step: int, cut_done: bool) -> float:
        """Fraction of the prunable parameters that should remain.

        Args:
            step: updates done.
            cut_done: whether a cut of all blocks at once has happened.
        """
        return 1.0

    def scores_in(self, step: int) -> bool:
        """Whether the update that follows `step` updates also scores blocks."""
        return False

    def refreshes_scores(self, step: int) -> bool:
        """Whether what scores take from weights must be measured again after `step` updates."""
        return False

    def decides(self, step: int) -> bool:
        """Whether a decision is due after `step` updates, given scores."""
        return False

    def mask_action(self, step: int, scored: bool) -> MaskAction:
        """What happens to decision and masks.

        Args:
            step: updates done.
            scored: whether any block has a score. Read only where `decides(step)`.

        Raises:
            UserError: the pruning phase ends and no block has a score.
        """
        return MaskAction.NONE

    def cut_action(self, step: int, last_step: int, masks: np.ndarray, decision: np.ndarray) -> CutAction:
        """What is removed.

        Args:
            step: updates done.
            last_step: updates of the whole run. Masks cannot move after it.
            masks: float64 [blocks], 0 to 1.
            decision: bool [blocks], the blocks to keep.
        """
        return CutAction.NONE

    def finished(self, step: int, masks: np.ndarray) -> bool:
        """Whether pruning is over after a cut at `step`. masks: float64 [blocks], those of the blocks that remain."""
        return True


class Never(Policy):
    """Prunes nothing."""


def no_finite_step(phase: int) -> UserError:
    """The error of a phase that ends without a score."""
    return UserError(
        f"no step of the pruning phase of {phase} steps had a finite loss and gradient, so that no score "
        "tells blocks apart. Give a higher --pruning_phase or, with fp16, a lower initial_scale_power"
    )
