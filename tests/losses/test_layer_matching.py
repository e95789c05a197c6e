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


def measured(matching: LayerMatcher) -> LayerMatcher:
    """All teacher layers are zero. The states of student layer n differ by n % 2 from them."""
    matching.begin(3, measuring=True)
    student = {n: torch.full((1, 2, 4), float((n + 1) % 2)) for n in matching.mapping}
    teacher = {n: torch.zeros(1, 2, 4) for n in matching.measured_layers}
    matching.measure(lambda state: state, student, teacher, [torch.ones(1, 2)] * len(matching.stacks), None)
    return matching


@pytest.mark.parametrize("kind", ["bert-classes", "t5-gated"])
def test_stacks_hold_every_layer_once(kind: str) -> None:
    matching = matcher(kind, True)
    layers = [layer for stack in matching.stacks for layer in stack]
    assert layers == sorted(matching.mapping) and len(matching.stacks) == (2 if kind.startswith("t5") else 1)
    assert all(matching.stack_of[layer] == index for index, stack in enumerate(matching.stacks) for layer in stack)


def test_the_mapping_of_the_same_step_needs_no_later_sum() -> None:
    matching = measured(matcher("t5-gated", True))
    assert (
        matching.measured_layers == matching.teacher_layers and not matching.pending().numel() and not matching.matched
    )
    matching.rematch()
    assert matching.matched
    for layer in matching.measured_layers:
        stack = matching.stacks[matching.stack_of[layer]]
        assert matching.mapping[layer] == next(n for n in stack if n % 2 == 1)


def test_the_mapping_of_the_step_before_comes_from_the_reduced_sum() -> None:
    matching = measured(matcher("bert-classes", False))
    before = dict(matching.mapping)
    assert matching.pending().numel() == len(matching.measured_layers) * len(matching.mapping)
    matching.observe(torch.zeros(0))
    assert matching.mapping == before
    matching.observe(matching.pending())
    assert all(matching.mapping[layer] == 1 for layer in matching.measured_layers) and not matching.matched


def test_without_a_teacher_nothing_is_measured() -> None:
    matching = matcher("bert-classes", False)
    matching.begin(5, measuring=False)
    assert not matching.pending().numel()
