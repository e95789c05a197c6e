"""When a run scores blocks, moves masks and cuts (METHOD.md section 4). Pure functions of steps, masks and decisions.

A policy knows the options of a run and its number of steps. It never sees a model, a score or another rank. A step is
the number of optimizer updates done.

`Never` prunes nothing. `OneShot` cuts once, before update `cut_step`. `Gradual` decides again after every update of the
pruning phase while masks follow the decision. Before that phase it does nothing. It cuts fully masked blocks every
`prune_every` updates. Its last cut waits until every mask is exactly 0 or 1, so that removing the masks changes no
output. `Staged` also cuts every `prune_every` updates, each time all that it decides, without masks: a repair comes
with each cut. `Learned` trains gates in the pruning phase, and cuts once at its end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from apt_ds.config import schedules
from apt_ds.config.errors import UserError
from apt_ds.config.pruning_options import PruningOptions


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


@dataclass(frozen=True)
class OneShot(Policy):
    """Removes all blocks at once. The caller scores them and cuts before update `at`.

    at: 0 before tuning, the end of the phase for a cut in mid-run; sparsity: the fraction of the prunable parameters to
    remove.
    """

    at: int
    sparsity: float

    @property
    def cut_step(self) -> int | None:
        """The update `at`."""
        return self.at

    def kept_fraction(self, step: int, cut_done: bool) -> float:
        """1 before the cut, 1 - sparsity after it."""
        return 1.0 - self.sparsity if cut_done else 1.0


@dataclass(frozen=True)
class Phased(Policy):
    """What policies share that remove blocks while the model tunes.

    sparsity: the fraction of the prunable parameters to remove by the end of the phase; prune_every: updates between
    two cuts.
    """

    sparsity: float
    prune_every: int

    def kept_fraction(self, step: int, cut_done: bool) -> float:
        """1 - gamma_t of METHOD.md section 4: cubic from 1 at the phase's start to 1 - sparsity at its end."""
        return schedules.kept_fraction(step - self.start, self.phase - self.start, self.sparsity)

    def scores_in(self, step: int) -> bool:
        """True in the pruning phase."""
        return self.start <= step < self.phase

    def refreshes_scores(self, step: int) -> bool:
        """True at every adjustment, since weights have moved whether or not blocks are cut."""
        return schedules.is_adjustment(step, self.prune_every, self.phase, self.start)


@dataclass(frozen=True)
class Gradual(Phased):
    """Masks follow the decision, and cuts follow the masks.

    cuts_wait: whether only masks move before the phase ends.
    """

    cuts_wait: bool = False

    def decides(self, step: int) -> bool:
        """True in the pruning phase and at its end."""
        return self.start < step <= self.phase

    def mask_action(self, step: int, scored: bool) -> MaskAction:
        """Masks wait for the first finite step of the phase. Before it no score tells blocks apart."""
        if step <= self.start:
            return MaskAction.NONE
        if not self.decides(step):
            return MaskAction.MOVE
        if scored:
            return MaskAction.DECIDE_AND_MOVE
        if step < self.phase:
            return MaskAction.NONE
        raise no_finite_step(self.phase - self.start)

    def cut_action(self, step: int, last_step: int, masks: np.ndarray, decision: np.ndarray) -> CutAction:
        """The last cut waits for all masks, or for the last step. Cuts before it take fully masked blocks."""
        if step <= self.start:
            return CutAction.NONE
        if step >= self.phase and (step >= last_step or (masks == decision).all()):
            return CutAction.FINISH if decision.all() else CutAction.DECISION
        return CutAction.NONE if step % self.prune_every or self.cuts_wait else CutAction.FULLY_MASKED

    def finished(self, step: int, masks: np.ndarray) -> bool:
        """True once the phase is over and every mask is 1."""
        return step >= self.phase and bool((masks == 1.0).all())


class Staged(Phased):
    """Removes at each adjustment all that the decision removes."""

    def decides(self, step: int) -> bool:
        """True at every adjustment."""
        return schedules.is_adjustment(step, self.prune_every, self.phase, self.start)

    def mask_action(self, step: int, scored: bool) -> MaskAction:
        """A decision at every adjustment that has scores. Masks stay 1."""
        if self.decides(step) and scored:
            return MaskAction.DECIDE
        if step == self.phase:
            raise no_finite_step(self.phase - self.start)
        return MaskAction.NONE

    def cut_action(self, step: int, last_step: int, masks: np.ndarray, decision: np.ndarray) -> CutAction:
        """Everything that the decision of this step removes."""
        if not decision.all():
            return CutAction.UNMASKED
        return CutAction.FINISH if step >= self.phase else CutAction.NONE

    def finished(self, step: int, masks: np.ndarray) -> bool:
        """True once the phase is over."""
        return step >= self.phase


@dataclass(frozen=True)
class Learned(Policy):
    """Removes all blocks at once at the end of a phase that learns gates (`l0_gates.py`).

    sparsity: the fraction of the prunable parameters to remove.
    """

    sparsity: float

    def kept_fraction(self, step: int, cut_done: bool) -> float:
        """1 - t, where t is the target of the Lagrangian. 1 - sparsity at the end of the phase."""
        return 1.0 - schedules.gate_target(step, self.phase, self.sparsity)

    def scores_in(self, step: int) -> bool:
        """True in the pruning phase: its steps train the gates."""
        return step < self.phase

    def decides(self, step: int) -> bool:
        """True at the end of the phase only."""
        return step == self.phase

    def mask_action(self, step: int, scored: bool) -> MaskAction:
        """The gates decide once."""
        if not self.decides(step):
            return MaskAction.NONE
        if not scored:
            raise no_finite_step(self.phase)
        return MaskAction.DECIDE

    def cut_action(self, step: int, last_step: int, masks: np.ndarray, decision: np.ndarray) -> CutAction:
        """Everything that the decision removes, at the end of the phase."""
        if step < self.phase:
            return CutAction.NONE
        return CutAction.FINISH if decision.all() else CutAction.DECISION


def no_finite_step(phase: int) -> UserError:
    """The error of a phase that ends without a score."""
    return UserError(
        f"no step of the pruning phase of {phase} steps had a finite loss and gradient, so that no score "
        "tells blocks apart. Give a higher --pruning_phase or, with fp16, a lower initial_scale_power"
    )


def policy_of(options: PruningOptions, total_steps: int) -> Policy:
    """The policy of a run of `total_steps` updates."""
    if options.learns_gates:
        return Learned(schedules.pruning_phase(total_steps, options.pruning_phase), options.sparsity)
    if options.gradual:
        start = schedules.pruning_start(total_steps, options.pruning_start)
        phase = schedules.pruning_end(total_steps, options.pruning_start, options.pruning_phase)
        if options.repairs:
            return Staged(phase, options.sparsity, options.prune_every, start=start)
        return Gradual(phase, options.sparsity, options.prune_every, options.cuts_wait, start=start)
    phase = schedules.pruning_phase(total_steps, options.pruning_phase)
    if options.one_shot:
        return OneShot(phase, 0 if options.mode == "pretuning" else min(phase, total_steps - 1), options.sparsity)
    return Never(phase)
