"""The loss of a step with a teacher: no split changes it, and its state survives."""

from __future__ import annotations

import json

import pytest
import torch

from tests.losses.students import KINDS, mapped, started, step_of


@pytest.mark.parametrize("match", ["step", "previous"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_split_does_not_change_the_loss(kind: str, match: str) -> None:
    student = started(kind, "--layer_match", match)
    start = dict(student.distillation.matcher.mapping)
    whole = step_of(student, kind, [slice(0, 4)], 6)
    student.training_loss.observe(student.training_loss.pending())
    matched = mapped(student)
    student.distillation.matcher.mapping = start
    split = step_of(student, kind, [slice(0, 1), slice(1, 3), slice(3, 4)], 6)
    assert student.phase.mu == 0.6
    student.training_loss.observe(student.training_loss.pending())
    assert mapped(student) == matched
    assert whole[0] == pytest.approx(split[0], rel=1e-5)
    assert torch.allclose(whole[2], split[2], rtol=1e-4)
    assert whole[1].keys() == split[1].keys()
    assert {"transform.lora_A", "transform.lora_B"} < whole[1].keys()
    for name, gradient in whole[1].items():
        assert torch.allclose(gradient, split[1][name], rtol=1e-3, atol=1e-6), name


def test_the_state_survives_a_round_trip() -> None:
    student = started("t5-gated")
    student.phase.set_initial_score({"score": 50.0, "held_out_loss": 3.0})
    student.distillation.matcher.mapping[0] = 1
    values, tensors = student.training_loss.state_dict()
    fresh = started("t5-gated").training_loss
    fresh.load_state_dict(json.loads(json.dumps(values)), tensors)
    mapping = fresh.distillation.matcher.mapping
    assert mapping == student.distillation.matcher.mapping and mapping[0] == 1
    assert (fresh.phase.best_score, fresh.phase.active) == (50.0, True)
    assert fresh.phase.teacher.snapshot.keys() == tensors.keys() != set()
    assert all(torch.equal(fresh.phase.teacher.snapshot[name], tensor) for name, tensor in tensors.items())
    assert all(fresh.phase.teacher.snapshot[name] is not tensor for name, tensor in tensors.items())
