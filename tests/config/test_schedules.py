"""Schedules at their ends, in between, and against transformers' own."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from transformers import get_scheduler

from apt_ds.config import schedules


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.95])
def test_kept_fraction_is_cubic_between_its_ends(sparsity: float) -> None:
    kept = [schedules.kept_fraction(step, 100, sparsity) for step in range(101)]
    assert kept[0] == 1.0
    assert kept[100] == pytest.approx(1.0 - sparsity, abs=1e-15)
    assert kept[50] == pytest.approx(1.0 - sparsity * 7 / 8)
    assert all(later <= earlier for earlier, later in pairwise(kept))


def test_kept_fraction_stays_at_its_ends() -> None:
    assert schedules.kept_fraction(-1, 10, 0.3) == 1.0
    assert schedules.kept_fraction(11, 10, 0.3) == schedules.kept_fraction(10, 10, 0.3) == pytest.approx(0.7)
    assert schedules.kept_fraction(0, 0, 0.3) == pytest.approx(0.7)  # no phase: done from the start


def test_masks_are_as_fast_as_the_steps_left_need_unless_told() -> None:
    for total, phase, expected in ((1000, 500, 0.01), (200, 100, 0.02), (20, 10, 0.2), (3, 2, 1.0), (10, 10, 1.0)):
        assert schedules.mask_step(0.0, total, phase) == pytest.approx(expected)
        assert schedules.mask_step(0.03, total, phase) == 0.03
        assert not schedules.mask_notice(0.0, total, phase)


@pytest.mark.parametrize(("total", "phase"), [(150, 75), (150, 150), (40, 30), (2000, 1000)])
def test_the_notice_names_the_steps_and_a_step_size_that_fits(total: int, phase: int) -> None:
    there = total - phase + 1
    text = schedules.mask_notice(0.5 / there, total, phase)
    assert f"need {2 * there} steps" in text and f"The run has {there}." in text and f"at step {phase}." in text
    fitting = float(text.partition("Give --mask_step ")[2].split()[0])
    assert not schedules.mask_notice(fitting, total, phase)
    assert not schedules.mask_notice(1 / there, total, phase)


def test_rank_budget_grows_linearly_to_factor() -> None:
    assert [schedules.rank_budget(step, 10, 1000, 4.0) for step in (0, 5, 10, 11)] == [1000, 2500, 4000, 4000]
    assert schedules.rank_budget(3, 10, 1000, 1.0) == 1000


def test_warmup_steps_rounds_up_and_yields_to_a_count() -> None:
    assert schedules.warmup_steps(60, 0.03, 0) == 2
    assert schedules.warmup_steps(60, 0.03, 5) == 5
    assert schedules.warmup_steps(60, 0.0, 0) == 0


@pytest.mark.parametrize("warmup", [0, 1, 10, 100])
@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_learning_rate_is_that_of_transformers(kind: str, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    name = "constant_with_warmup" if kind == "constant" else kind
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=100)
    for step in range(100):
        ours = schedules.learning_rate(step, 100, 1e-4, kind, warmup)
        assert ours == pytest.approx(theirs.get_last_lr()[0], rel=1e-12, abs=1e-18), step
        optimizer.step()
        theirs.step()


def test_the_learning_rate_starts_and_ends_at_zero_after_a_warm_up() -> None:
    assert schedules.learning_rate(0, 100, 1e-4, "cosine", 10) == 0.0
    assert schedules.learning_rate(10, 100, 1e-4, "cosine", 10) == 1e-4
    for kind in ("cosine", "linear"):
        assert schedules.learning_rate(100, 100, 1e-4, kind, 10) == pytest.approx(0.0, abs=1e-18)
        assert schedules.learning_rate(101, 100, 1e-4, kind, 10) == pytest.approx(0.0, abs=1e-18)
    assert schedules.learning_rate(101, 100, 1e-4, "constant", 10) == 1e-4


def test_distill_weight_rises_to_one() -> None:
    assert [schedules.distill_weight(step, 10) for step in (0, 5, 10, 11)] == [0.0, 0.5, 1.0, 1.0]


def test_adjustments_end_on_the_last_step() -> None:
    assert [step for step in range(60) if schedules.is_adjustment(step, 20, 50)] == [20, 40, 50]
    assert [step for step in range(60) if schedules.is_adjustment(step, 20, 40)] == [20, 40]
    assert not any(schedules.is_adjustment(step, 20, 0) for step in range(60))


def test_adjustments_begin_after_the_start() -> None:
    assert [step for step in range(60) if schedules.is_adjustment(step, 20, 50, 20)] == [40, 50]
    assert [step for step in range(60) if schedules.is_adjustment(step, 20, 50, 15)] == [20, 40, 50]


@pytest.mark.parametrize(
    ("total", "start", "phase", "expected"),
    [
        *[(100, 0.0, 0.5, (0, 50)), (100, 0.3, 0.5, (30, 80)), (100, 0.5, 0.5, (50, 100))],
        # rounding leaves at least one step to the phase, and ends it inside the run
        *[(7, 0.5, 0.5, (4, 7)), (1, 0.9, 0.1, (0, 1)), (3, 0.9, 0.1, (2, 3)), (10, 0.0, 0.01, (0, 1))],
    ],
)
def test_the_pruning_phase_lies_inside_the_run(
    total: int, start: float, phase: float, expected: tuple[int, int]
) -> None:
    assert (schedules.pruning_start(total, start), schedules.pruning_end(total, start, phase)) == expected


def test_gates_of_a_long_phase_have_the_usual_moments() -> None:
    assert schedules.gate_betas(2000) == (0.9, 0.999) == schedules.gate_betas(10**6)
    assert schedules.gate_betas(1) == schedules.gate_betas(20) == (1 - 1 / 1.5, 0.9)
