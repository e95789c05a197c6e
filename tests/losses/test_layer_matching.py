"""The layer mapping: which layers are measured, and when the mapping changes."""

from __future__ import annotations

import pytest
import torch

from apt_ds.losses.layer_matching import LayerMatcher
from apt_ds.models.architectures import anatomy_of
from tests.support import tiny

CPU = torch.device("cpu")


def matcher(kind: str, same_step: bool) -> LayerMatcher:
    return LayerMatcher(anatomy_of(tiny.small(kind).config, tiny.TASKS[kind]), 0, same_step, CPU)


def measured(made: LayerMatcher) -> LayerMatcher:
    """All teacher layers are zero. The states of student layer n differ by n % 2 from them."""
    made.begin(3, measuring=True)
    student = {n: torch.full((1, 2, 4), float((n + 1) % 2)) for n in made.mapping}
    teacher = {n: torch.zeros(1, 2, 4) for n in made.measured_layers}
    made.measure(lambda state: state, student, teacher, [torch.ones(1, 2)] * len(made.stacks), None)
    return made


@pytest.mark.parametrize("kind", ["bert-classes", "t5-gated"])
def test_stacks_hold_every_layer_once(kind: str) -> None:
    made = matcher(kind, True)
    layers = [layer for stack in made.stacks for layer in stack]
    assert layers == sorted(made.mapping) and len(made.stacks) == (2 if kind.startswith("t5") else 1)
    assert all(made.stack_of[layer] == index for index, stack in enumerate(made.stacks) for layer in stack)


def test_the_mapping_of_the_same_step_needs_no_later_sum() -> None:
    made = measured(matcher("t5-gated", True))
    assert made.measured_layers == made.teacher_layers and not made.pending().numel() and not made.matched
    made.rematch()
    assert made.matched
    for layer in made.measured_layers:
        stack = made.stacks[made.stack_of[layer]]
        assert made.mapping[layer] == next(n for n in stack if n % 2 == 1)


def test_the_mapping_of_the_step_before_comes_from_the_reduced_sum() -> None:
    made = measured(matcher("bert-classes", False))
    before = dict(made.mapping)
    assert made.pending().numel() == len(made.measured_layers) * len(made.mapping)
    made.observe(torch.zeros(0))
    assert made.mapping == before
    made.observe(made.pending())
    assert all(made.mapping[layer] == 1 for layer in made.measured_layers) and not made.matched


def test_without_a_teacher_nothing_is_measured() -> None:
    made = matcher("bert-classes", False)
    made.begin(5, measuring=False)
    assert not made.pending().numel()
