"""The phase of the teacher: when it begins, learns and ends."""

from __future__ import annotations

import pytest
import torch

from apt_ds.data.batching import collate
from apt_ds.losses.self_teacher import TRANSFORM
from tests.losses.students import rows, started, step_of


def test_the_teacher_learns_unless_the_student_got_worse() -> None:
    student = started("bert-classes")
    assert student.phase.update_teacher(50.0, student.model)
    first = student.phase.teacher.snapshot["classifier.weight"]
    student.model.classifier.weight.data += 1.0
    assert not student.phase.update_teacher(49.0, student.model)
    assert torch.equal(student.phase.teacher.snapshot["classifier.weight"], first)
    assert not student.phase.update_teacher(float("nan"), student.model)
    assert student.phase.update_teacher(50.0, student.model)
    assert torch.equal(student.phase.teacher.snapshot["classifier.weight"], first + 1.0)


def test_the_first_adjustment_must_not_be_worse_than_the_start() -> None:
    student = started("bert-classes")
    student.phase.set_initial_score({"score": 50.0, "held_out_loss": 3.0})
    assert not student.phase.update_teacher(49.0, student.model)
    assert student.phase.update_teacher(50.0, student.model)
    student.phase.set_initial_score({"held_out_loss": 3.0})
    assert not student.phase.update_teacher(-3.1, student.model)
    assert student.phase.update_teacher(-2.9, student.model)
    student.phase.set_initial_score({"score": float("nan"), "held_out_loss": 3.0})
    assert student.phase.update_teacher(0.0, student.model)


@pytest.mark.parametrize("match", ["step", "previous"])
def test_a_teacher_that_waits_leaves_the_loss_to_the_task(match: str) -> None:
    """Before its phase the loss is the task's. From the phase on it is that of a phase without a wait."""
    kind, parts = "bert-classes", [slice(0, 2), slice(2, 4)]
    student, early = started(kind, "--layer_match", match), started(kind, "--layer_match", match)
    loss = student.training_loss
    loss.phase.distill_start, loss.phase.distill_steps = 3, 13
    for module in (student.model, early.model):
        module.get_submodule(TRANSFORM).lora_B.data.fill_(0.01)
    total, gradients, _ = step_of(student, kind, parts, 2)
    assert loss.phase.waiting and loss.phase.mu == 0.0 and not loss.distillation.previews and not loss.pending().numel()
    without_teacher = step_of(early, kind, parts, 0)
    assert total == pytest.approx(without_teacher[0], rel=1e-6)
    # an engine expects a gradient of Tr
    assert all(torch.allclose(gradients[name], without_teacher[1][name], atol=1e-7) for name in gradients)
    assert not any(gradients[f"{TRANSFORM}.{name}"].any() for name in ("lora_A", "lora_B"))
    for step in (3, 8):
        loss.begin(step, rows(kind))
        assert not loss.phase.waiting and loss.phase.mu == (step - 3) / 10
        assert loss.distillation.previews == (match == "step")
    assert [step for step in range(20) if loss.phase.teacher_due(step)] == [3, 13]
    loss.phase.distill_start = 0
    assert not loss.phase.teacher_due(0)


def test_the_end_removes_teacher_and_transform() -> None:
    student = started("bert-classes")
    loss = student.training_loss
    assert not loss.phase.due(9) and loss.phase.due(10)
    loss.remove_hooks()
    anatomy = loss.phase.end(student.model, student.anatomy)
    assert not hasattr(student.model, TRANSFORM) and TRANSFORM not in [slot.path for slot in anatomy.slots]
    loss.begin(10, rows("bert-classes"))
    batch = collate(rows("bert-classes"), 0)
    total, summed = loss.micro_batch_loss(student.model, batch, student.masks)
    assert loss.phase.mu == 0 and not loss.distillation.previews and not loss.pending().numel()
    torch.testing.assert_close(total, summed / 4)
