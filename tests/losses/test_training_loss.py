"""The loss of a step with a teacher: no split changes it, and the parts have their coefficients."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from apt_ds.data.batching import collate
from apt_ds.losses.self_teacher import TRANSFORM
from apt_ds.models.blocks import HIDDEN, block_slices
from tests.losses.students import KINDS, Student, rows, started, step_of


@pytest.mark.parametrize("match", ["step", "previous"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_split_does_not_change_the_loss(kind: str, match: str) -> None:
    student = started(kind, "--layer_match", match)
    start = dict(student.training_loss.matcher.mapping)
    whole = step_of(student, kind, [slice(0, 4)], 6)
    student.training_loss.observe(student.training_loss.pending())
    matched = {
        layer: student.training_loss.matcher.mapping[layer] for layer in student.training_loss.matcher.measured_layers
    }
    student.training_loss.matcher.mapping = start
    split = step_of(student, kind, [slice(0, 1), slice(1, 3), slice(3, 4)], 6)
    assert student.training_loss.mu == 0.6
    student.training_loss.observe(student.training_loss.pending())
    assert {
        layer: student.training_loss.matcher.mapping[layer] for layer in student.training_loss.matcher.measured_layers
    } == matched
    assert whole[0] == pytest.approx(split[0], rel=1e-5)
    assert torch.allclose(whole[2], split[2], rtol=1e-4)
    assert whole[1].keys() == split[1].keys()
    assert {"transform.lora_A", "transform.lora_B"} < whole[1].keys()
    for name, gradient in whole[1].items():
        assert torch.allclose(gradient, split[1][name], rtol=1e-3, atol=1e-6), name


def by_hand(student: Student, kind: str) -> tuple[float, float]:
    """(L_pred, L_layer) of the four rows from their definition: every teacher layer meets its nearest student layer."""
    training_loss, batch = student.training_loss, collate(rows(kind), 0)
    teacher = training_loss.teacher_outputs(student.model, batch, student.masks)
    with torch.no_grad(), training_loss.recorder.recording(training_loss.matcher.mapping) as states:
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
    for layer in training_loss.matcher.teacher_layers:
        number = training_loss.matcher.stack_of[layer]
        distances = []
        for own in training_loss.matcher.stacks[number]:
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
    student.training_loss.distill_steps = 1  # mu is 1
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
    student.training_loss.teacher.take_snapshot(student.model)
    student.model.get_submodule("transform").lora_B.data.zero_()
    student.training_loss.distill_steps = 1  # mu is 1
    loss, gradients, _ = step_of(student, kind, [slice(0, 4)], 1)
    assert abs(loss) < 1e-5 and max(g.abs().max() for g in gradients.values()) < 1e-4
    student.training_loss.observe(student.training_loss.pending())
    assert {
        layer: student.training_loss.matcher.mapping[layer] for layer in student.training_loss.matcher.measured_layers
    } == {layer: layer for layer in student.training_loss.matcher.measured_layers}


def test_the_teacher_learns_unless_the_student_got_worse() -> None:
    student = started("bert-classes")
    assert student.training_loss.update_teacher(50.0, student.model)
    first = student.training_loss.teacher.snapshot["classifier.weight"]
    student.model.classifier.weight.data += 1.0
    assert not student.training_loss.update_teacher(49.0, student.model)
    assert torch.equal(student.training_loss.teacher.snapshot["classifier.weight"], first)
    assert not student.training_loss.update_teacher(float("nan"), student.model)
    assert student.training_loss.update_teacher(50.0, student.model)
    assert torch.equal(student.training_loss.teacher.snapshot["classifier.weight"], first + 1.0)


def test_the_first_adjustment_must_not_be_worse_than_the_start() -> None:
    student = started("bert-classes")
    student.training_loss.set_initial_score({"score": 50.0, "held_out_loss": 3.0})
    assert not student.training_loss.update_teacher(49.0, student.model) and student.training_loss.update_teacher(
        50.0, student.model
    )
    student.training_loss.set_initial_score({"held_out_loss": 3.0})
    assert not student.training_loss.update_teacher(-3.1, student.model) and student.training_loss.update_teacher(
        -2.9, student.model
    )
    student.training_loss.set_initial_score({"score": float("nan"), "held_out_loss": 3.0})
    assert student.training_loss.update_teacher(0.0, student.model)


@pytest.mark.parametrize("match", ["step", "previous"])
def test_a_teacher_that_waits_leaves_the_loss_to_the_task(match: str) -> None:
    """Before its phase the loss is the task's. From the phase on it is that of a phase without a wait."""
    kind, parts = "bert-classes", [slice(0, 2), slice(2, 4)]
    student, early = started(kind, "--layer_match", match), started(kind, "--layer_match", match)
    loss = student.training_loss
    loss.distill_start, loss.distill_steps = 3, 13
    for module in (student.model, early.model):
        module.get_submodule(TRANSFORM).lora_B.data.fill_(0.01)
    total, gradients, _ = step_of(student, kind, parts, 2)
    assert loss.waiting and loss.mu == 0.0 and not loss.previews and not loss.pending().numel()
    without_teacher = step_of(early, kind, parts, 0)
    assert total == pytest.approx(without_teacher[0], rel=1e-6)
    # an engine expects a gradient of Tr
    assert all(torch.allclose(gradients[name], without_teacher[1][name], atol=1e-7) for name in gradients)
    assert not any(gradients[f"{TRANSFORM}.{name}"].any() for name in ("lora_A", "lora_B"))
    for step in (3, 8):
        loss.begin(step, rows(kind))
        assert not loss.waiting and loss.mu == (step - 3) / 10 and loss.previews == (match == "step")
    assert [step for step in range(20) if loss.teacher_due(step)] == [3, 13]
    loss.distill_start = 0
    assert not loss.teacher_due(0)


def test_the_state_survives_a_round_trip() -> None:
    student = started("t5-gated")
    student.training_loss.set_initial_score({"score": 50.0, "held_out_loss": 3.0})
    student.training_loss.matcher.mapping[0] = 1
    values, tensors = student.training_loss.state_dict()
    fresh = started("t5-gated").training_loss
    fresh.load_state_dict(json.loads(json.dumps(values)), tensors)
    assert fresh.matcher.mapping == student.training_loss.matcher.mapping and fresh.matcher.mapping[0] == 1
    assert (fresh.best_score, fresh.distilling) == (50.0, True)
    assert fresh.teacher.snapshot.keys() == tensors.keys() != set()
    assert all(torch.equal(fresh.teacher.snapshot[name], tensor) for name, tensor in tensors.items())
    assert all(fresh.teacher.snapshot[name] is not tensor for name, tensor in tensors.items())


def test_the_end_removes_teacher_and_transform() -> None:
    student = started("bert-classes")
    loss = student.training_loss
    assert not loss.due(9) and loss.due(10)
    loss.remove_hooks()
    anatomy = loss.end(student.model, student.anatomy)
    assert not hasattr(student.model, TRANSFORM) and TRANSFORM not in [slot.path for slot in anatomy.slots]
    loss.begin(10, rows("bert-classes"))
    batch = collate(rows("bert-classes"), 0)
    total, summed = loss.micro_batch_loss(student.model, batch, student.masks)
    assert loss.mu == 0 and not loss.previews and not loss.pending().numel()
    torch.testing.assert_close(total, summed / 4)
