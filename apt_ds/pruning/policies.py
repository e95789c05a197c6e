"""The policies of the command line (METHOD.md section 4). `policy.py` says what a policy is.

`OneShot` cuts once, before update `cut_step`. `Gradual` decides again after every update of the pruning phase while
masks follow the decision. Before that phase it does nothing. It cuts fully masked blocks every `prune_every` updates.
Its last cut waits until every mask is exactly 0 or 1, so that removing the masks changes no output. `Staged` also cuts
every `prune_every` updates, each time all that it decides, without masks: a repair comes with each cut. `Learned`
trains gates in the pruning phase, and cuts once at its end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apt_ds.config import schedules
from apt_ds.config.pruning_options import PruningOptions
from apt_ds.pruning.policy import CutAction, MaskAction, Never, Policy, no_finite_step


@dataclass(frozen=True)
class OneShot(Policy):
    """Removes all blocks at once. The caller scores them and cuts before update `at`.

    Attributes:
        at: 0 before tuning, the end of the phase for a cut in mid-run.
        sparsity: the fraction of the prunable parameters to remove.
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

    Attributes:
        sparsity: the fraction of the prunable parameters to remove by the end of the phase.
        prune_every: updates between two cuts.
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

    Attributes:
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

    Attributes:
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
