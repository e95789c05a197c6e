"""When blocks are scored, masked and cut (METHOD.md section 4). No model is needed."""

from __future__ import annotations

import numpy as np
import pytest

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.pruning.policies import Gradual, Learned, OneShot, Staged, policy_of
from apt_ds.pruning.policy import CutAction, MaskAction, Never

DECISION = np.array([True, True, False, False])
ARRIVED = np.array([1.0, 1.0, 0.0, 0.0])
LAST = 100


def gradual(cuts_wait: bool = False) -> Gradual:
    return Gradual(phase=20, sparsity=0.4, prune_every=8, cuts_wait=cuts_wait)


@pytest.mark.parametrize(
    ("flags", "policy"),
    [
        ({"pruning": "none"}, Never(10)),
        ({"pruning": "gradual", "sparsity": 0.0}, Never(10)),
        ({"pruning": "pretuning", "sparsity": 0.0}, Never(10)),
        ({"pruning": "pretuning", "sparsity": 0.4}, OneShot(10, 0, 0.4)),
        ({"pruning": "posttuning", "sparsity": 0.4}, OneShot(10, 10, 0.4)),
        ({"pruning": "posttuning", "sparsity": 0.4, "pruning_phase": 1.0}, OneShot(20, 19, 0.4)),
        ({"pruning": "gradual", "sparsity": 0.4, "prune_every": 3}, Gradual(10, 0.4, 3, False)),
        ({"pruning": "gradual", "sparsity": 0.4, "prune_every": 3, "defer_cuts": True}, Gradual(10, 0.4, 3, True)),
        ({"pruning": "gradual", "sparsity": 0.4, "prune_every": 3, "distill": True}, Gradual(10, 0.4, 3, True)),
        ({"pruning": "gradual", "sparsity": 0.4, "pruning_start": 0.3}, Gradual(16, 0.4, 20, start=6)),
        ({"pruning": "gradual", "sparsity": 0.4, "pruning_start": 0.5}, Gradual(20, 0.4, 20, start=10)),
        ({"pruning": "gradual", "sparsity": 0.0, "pruning_start": 0.3}, Never(10)),
        ({"pruning": "pretuning", "sparsity": 0.4, "pruning_start": 0.3}, OneShot(10, 0, 0.4)),
        ({"pruning": "gradual", "sparsity": 0.4, "score": "l0"}, Learned(10, 0.4)),
        ({"pruning": "gradual", "sparsity": 0.4, "repair": "ls", "prune_every": 3}, Staged(10, 0.4, 3)),
        ({"pruning": "gradual", "sparsity": 0.4, "repair": "ls", "pruning_start": 0.3}, Staged(16, 0.4, 20, start=6)),
    ],
)
def test_options_choose_the_policy(flags: dict[str, object], policy: object) -> None:
    assert policy_of(RunConfig(**flags).pruning, 20) == policy


def test_only_a_one_shot_policy_has_a_cut_step() -> None:
    assert [policy.cut_step for policy in (Never(10), OneShot(10, 0, 0.4), OneShot(10, 7, 0.4), gradual())] == [
        None,
        0,
        7,
        None,
    ]


@pytest.mark.parametrize("policy", [Never(10), OneShot(10, 10, 0.4)])
def test_without_gradual_pruning_no_step_scores_moves_or_cuts(policy: Never | OneShot) -> None:
    for step in (1, 9, 10, 11, LAST):
        assert not policy.scores_in(step) and not policy.refreshes_scores(step) and not policy.decides(step)
        assert policy.mask_action(step, scored=True) is MaskAction.NONE
        assert policy.cut_action(step, LAST, ARRIVED, DECISION) is CutAction.NONE
        assert policy.finished(step, ARRIVED)


def test_the_target_follows_the_policy() -> None:
    assert [Never(10).kept_fraction(step, False) for step in (0, 50)] == [1.0, 1.0]
    assert [OneShot(10, 5, 0.4).kept_fraction(7, done) for done in (False, True)] == [1.0, 0.6]
    kept = [gradual().kept_fraction(step, False) for step in range(25)]
    assert kept[0] == 1.0 and kept[10] == pytest.approx(1 - 0.4 * (1 - 0.5**3))
    assert kept[20:] == pytest.approx([0.6] * 5) and kept[:21] == sorted(kept[:21], reverse=True)


def test_steps_of_the_phase_are_scored() -> None:
    assert [step for step in range(30) if gradual().scores_in(step)] == list(range(20))


@pytest.mark.parametrize("cuts_wait", [False, True])
def test_weights_are_measured_again_at_every_adjustment(cuts_wait: bool) -> None:
    assert [step for step in range(1, 40) if gradual(cuts_wait).refreshes_scores(step)] == [8, 16, 20]


def test_masks_wait_for_scores_and_move_on_after_the_phase() -> None:
    policy = gradual()
    assert policy.mask_action(19, scored=False) is MaskAction.NONE
    assert policy.mask_action(19, scored=True) is policy.mask_action(20, scored=True) is MaskAction.DECIDE_AND_MOVE
    # after the phase the decision is final, and nobody reads scores
    assert policy.mask_action(21, scored=False) is MaskAction.MOVE
    assert [policy.decides(step) for step in (19, 20, 21)] == [True, True, False]


def test_a_phase_that_ends_without_scores_is_an_error() -> None:
    with pytest.raises(UserError, match="no step of the pruning phase of 20 steps had a finite loss") as caught:
        gradual().mask_action(20, scored=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("masks", [ARRIVED, np.array([1.0, 0.9, 0.0, 0.0]), np.array([1.0, 1.0, 0.0, 0.1])])
def test_cuts_during_the_phase_take_fully_masked_blocks_only(masks: np.ndarray) -> None:
    cuts = [step for step in range(1, 20) if gradual().cut_action(step, LAST, masks, DECISION) is not CutAction.NONE]
    assert cuts == [8, 16]
    assert all(gradual().cut_action(step, LAST, masks, DECISION) is CutAction.FULLY_MASKED for step in cuts)
    waiting = [gradual(cuts_wait=True).cut_action(step, LAST, masks, DECISION) for step in range(1, 20)]
    assert set(waiting) == {CutAction.NONE}


@pytest.mark.parametrize("cuts_wait", [False, True])
@pytest.mark.parametrize("late", [np.array([1.0, 0.9, 0.0, 0.0]), np.array([1.0, 1.0, 0.0, 0.1])])
def test_the_last_cut_waits_until_every_mask_is_0_or_1(late: np.ndarray, cuts_wait: bool) -> None:
    """A kept mask below 1 delays it as much as a removed one above 0."""
    policy = gradual(cuts_wait)
    for step in (20, 21, 23):
        assert policy.cut_action(step, LAST, late, DECISION) is CutAction.NONE
        assert policy.cut_action(step, LAST, ARRIVED, DECISION) is CutAction.DECISION
    # an ordinary cut may come between
    assert policy.cut_action(24, LAST, late, DECISION) is (CutAction.NONE if cuts_wait else CutAction.FULLY_MASKED)


def test_the_last_step_waits_for_no_mask() -> None:
    late = np.array([1.0, 0.5, 0.5, 0.0])
    assert gradual().cut_action(LAST, LAST, late, DECISION) is CutAction.DECISION
    assert Gradual(LAST, 0.4, 8).cut_action(LAST, LAST, late, DECISION) is CutAction.DECISION


def test_masks_come_off_alone_where_earlier_cuts_removed_everything() -> None:
    everything = np.ones(2, dtype=bool)
    assert gradual().cut_action(21, LAST, np.array([1.0, 0.9]), everything) is CutAction.NONE
    assert gradual().cut_action(22, LAST, np.ones(2), everything) is CutAction.FINISH
    assert gradual().cut_action(19, LAST, np.ones(2), everything) is CutAction.NONE


def test_pruning_is_finished_after_the_phase_with_all_masks_at_1() -> None:
    policy = gradual()
    assert not policy.finished(19, np.ones(2)) and policy.finished(20, np.ones(2))
    assert not policy.finished(20, np.array([1.0, 0.99]))


@pytest.mark.parametrize("cuts_wait", [False, True])
def test_a_phase_that_starts_later_is_the_same_phase_moved(cuts_wait: bool) -> None:
    """Cuts come at the multiples of `prune_every`. The start here is one of them."""
    wait, early = 16, gradual(cuts_wait)
    late = Gradual(phase=20 + wait, sparsity=0.4, prune_every=8, cuts_wait=cuts_wait, start=wait)
    for step in range(1, 60):
        for scored in (True, False):
            if step != 20 or scored:
                assert late.mask_action(step + wait, scored) is early.mask_action(step, scored)
        assert late.scores_in(step + wait) == early.scores_in(step)
        assert late.refreshes_scores(step + wait) == early.refreshes_scores(step)
        assert late.decides(step + wait) == early.decides(step)
        assert late.kept_fraction(step + wait, False) == early.kept_fraction(step, False)
        for masks in (ARRIVED, np.array([1.0, 0.9, 0.0, 0.1])):
            arguments = LAST, masks, DECISION
            assert late.cut_action(step + wait, *arguments) is early.cut_action(step, *arguments)
        assert late.finished(step + wait, np.ones(2)) == early.finished(step, np.ones(2))


def test_nothing_happens_before_the_phase() -> None:
    policy = Gradual(phase=36, sparsity=0.4, prune_every=8, start=16)
    for step in range(17):
        assert policy.scores_in(step) == (step == 16)
        assert not policy.refreshes_scores(step) and not policy.decides(step)
        assert policy.mask_action(step, scored=True) is MaskAction.NONE
        assert policy.cut_action(step, LAST, ARRIVED, DECISION) is CutAction.NONE
        assert policy.kept_fraction(step, False) == 1.0


def test_learned_gates_decide_and_cut_once_at_the_end_of_their_phase() -> None:
    policy = Learned(phase=20, sparsity=0.4)
    kept = [policy.kept_fraction(step, False) for step in (0, 5, 10, 19, 20, 30)]
    assert kept == pytest.approx([1.0, 0.8, 0.6, 0.6, 0.6, 0.6])
    for step in range(1, 20):
        assert policy.scores_in(step) and policy.mask_action(step, scored=True) is MaskAction.NONE
        assert policy.cut_action(step, LAST, ARRIVED, DECISION) is CutAction.NONE
    assert policy.mask_action(20, scored=True) is MaskAction.DECIDE and not policy.scores_in(20)
    assert policy.cut_action(20, LAST, ARRIVED, DECISION) is CutAction.DECISION
    assert policy.cut_action(20, LAST, ARRIVED, np.ones(4, dtype=bool)) is CutAction.FINISH
    assert policy.finished(20, np.ones(2))
    with pytest.raises(UserError, match="no step of the pruning phase of 20 steps"):
        policy.mask_action(20, scored=False)


def test_repaired_cuts_come_at_adjustments_and_move_no_mask() -> None:
    policy = Staged(phase=36, sparsity=0.4, prune_every=8, start=16)
    everything = np.ones(4, dtype=bool)
    due = [24, 32, 36]
    assert [step for step in range(60) if policy.decides(step)] == due
    assert [step for step in range(60) if policy.refreshes_scores(step)] == due
    assert [step for step in range(60) if policy.scores_in(step)] == list(range(16, 36))
    for step in range(1, 60):
        if step != policy.phase:
            assert policy.mask_action(step, scored=False) is MaskAction.NONE
        assert policy.mask_action(step, scored=True) is (MaskAction.DECIDE if step in due else MaskAction.NONE)
        same = Gradual(phase=36, sparsity=0.4, prune_every=8, start=16)
        assert policy.kept_fraction(step, False) == same.kept_fraction(step, False)
        # an early budget may be too large for any unit to go
        nothing = CutAction.FINISH if step >= policy.phase else CutAction.NONE
        assert policy.cut_action(step, LAST, everything, everything) is nothing
    assert policy.cut_action(24, LAST, everything, DECISION) is CutAction.UNMASKED
    assert not policy.finished(32, np.ones(2)) and policy.finished(36, np.ones(2))
    with pytest.raises(UserError, match="no step of the pruning phase of 20 steps"):
        policy.mask_action(36, scored=False)
