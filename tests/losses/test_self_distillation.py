"""L_distill of a step: its parts have their coefficients, and what is measured is what is compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from apt_ds.data.batching import collate
from apt_ds.models.blocks import HIDDEN, block_slices
from tests.losses.students import KINDS, Student, mapped, rows, started, step_of


def by_hand(student: Student, kind: str) -> tuple[float, float]:
    """(L_pred, L_layer) of the four rows from their definition: every teacher layer meets its nearest student layer."""
    training_loss, batch = student.training_loss, collate(rows(kind), 0)
    matcher, recorder = student.distillation.matcher, student.distillation.recorder
    teacher = student.distillation.teacher_outputs(student.model, batch, student.masks)
    with torch.no_grad(), recorder.recording(matcher.mapping) as states:
        logits = training_loss.task_loss.logits(student.model, batch)
    divergences = []
    for own, other in zip(logits, teacher.logits, strict=True):
        p, q = other.softmax(-1), own.softmax(-1)
        divergences.append(
            (p * (p.clamp(min=1e-30) / q.clamp(min=1e-30)).log()).sum().item() / training_loss.loss_denominator
        )
    whole = student.masks.values[dict(block_slices(student.anatomy.sizes))[HIDDEN]] == 1.0
    assert 0 < whole.sum() < len(whole)
    counted = [batch.attention_mask.bool()]
    if batch.labels is not None:
        counted.append(batch.labels != -100)
    layers = 0.0
    for layer in matcher.teacher_layers:
        number = matcher.stack_of[layer]
        distances = []
        for own in matcher.stacks[number]:
            shown = student.model.get_submodule("transform")(states[own])
            squares = (shown - teacher.states[layer])[..., whole].square().mean(-1)
            distances.append(squares[counted[number]].mean().item())
        layers += min(distances)
    return float(np.mean(divergences)), layers


@pytest.mark.parametrize(
    ("kind", "task", "weight"),
    [
        ("bert-classes", "sst2", 1.0),
        ("t5-gated", "rte", 1.0),
        ("t5-gated", "cnndm", 0.1),
        ("t5-gated", "text", 0.1),
        ("roberta-answers", "squad_v2", 0.1),
    ],
)
def test_the_task_weighs_the_predictions(kind: str, task: str, weight: float) -> None:
    """GLUE: L_pred + 0.9 L_layer, in words too. Other tasks: 0.1 L_pred + 0.9 L_layer."""
    student = started(kind, "--task", task)
    student.phase.distill_steps = 1  # mu is 1
    loss, _, _ = step_of(student, kind, [slice(0, 4)], 1)
    predictions, layers = by_hand(student, kind)
    assert min(predictions, layers) > 1e-3
    assert loss == pytest.approx(weight * predictions + 0.9 * layers, rel=1e-4)


def test_what_was_measured_beforehand_is_what_is_compared() -> None:
    """With dropout the student drops the same units in both of its passes, and other units in the next step."""
    kind, seen = "bert-classes", []
    student = started(kind)
    for module in student.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    student.model.get_submodule(student.anatomy.layers[-1]).register_forward_hook(
        lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    for step in (6, 7):
        step_of(student, kind, [slice(0, 2), slice(2, 4)], step)
    # a step: teacher and student on the second part beforehand, both on the first part, the student on the second
    assert len(seen) == 10
    assert torch.equal(seen[1], seen[4]) and torch.equal(seen[6], seen[9])
    assert not torch.allclose(seen[1], seen[6], atol=1e-3) and torch.equal(seen[0], seen[5])
    assert not torch.allclose(seen[3], seen[8], atol=1e-3)


@pytest.mark.parametrize("match", ["step", "previous"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_is_its_teacher_learns_nothing_from_it(kind: str, match: str) -> None:
    student = started(kind, "--layer_match", match)
    student.masks.set(np.ones(student.anatomy.sizes.total()))
    student.phase.teacher.take_snapshot(student.model)
    student.model.get_submodule("transform").lora_B.data.zero_()
    student.phase.distill_steps = 1  # mu is 1
    loss, gradients, _ = step_of(student, kind, [slice(0, 4)], 1)
    assert abs(loss) < 1e-5 and max(g.abs().max() for g in gradients.values()) < 1e-4
    student.training_loss.observe(student.training_loss.pending())
    assert mapped(student) == {layer: layer for layer in student.distillation.matcher.measured_layers}
