"""The distance to a teacher of few tokens, against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from apt_ds.losses.teacher_kl import TeacherTokens, mixed_loss

CLASSES, TOKENS = 40, 7


def logits(seed: int) -> torch.Tensor:
    return 2 * torch.randn(TOKENS, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


TARGETS = torch.arange(TOKENS) * 3 % CLASSES


def teacher_of(dense: torch.Tensor, k: int, weight: float, temperature: float) -> TeacherTokens:
    top = F.log_softmax(dense / temperature, -1).topk(k)
    return TeacherTokens(top.indices, top.values, weight, temperature)


def reference(student: torch.Tensor, dense: torch.Tensor, k: int, weight: float, temperature: float) -> torch.Tensor:
    """The loss by autograd: probabilities of k tokens, and of the rest, in explicit buckets."""
    top = dense.topk(k).indices
    q, p = (torch.softmax(each / temperature, -1) for each in (dense, student))
    outside = torch.ones_like(q).scatter(1, top, 0.0)
    q, p = (torch.cat([each.gather(1, top), (each * outside).sum(-1, keepdim=True)], 1) for each in (q, p))
    distance = (q * (q.log() - p.log())).sum()
    return (1 - weight) * F.cross_entropy(student, TARGETS, reduction="sum") + weight * temperature**2 * distance


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("weight", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("k", [1, 8, CLASSES - 1])
def test_loss_and_gradient_are_those_of_autograd(k: int, weight: float, temperature: float) -> None:
    dense, student = logits(0), logits(1).requires_grad_()
    expected = reference(student, dense, k, weight, temperature)
    (slope,) = torch.autograd.grad(expected, student)
    teacher = teacher_of(dense, k, weight, temperature)
    loss = mixed_loss(student.detach(), TARGETS, teacher)
    assert torch.allclose(teacher.mix(loss.cross_entropy, loss.distance), expected, rtol=1e-9)
    assert torch.allclose(loss.cross_entropy, F.cross_entropy(student, TARGETS, reduction="sum"), rtol=1e-9)
    assert torch.allclose(loss.gradient, slope, atol=1e-9)


def test_the_teacher_itself_has_no_distance() -> None:
    dense = logits(0)
    loss = mixed_loss(dense, TARGETS, teacher_of(dense, 8, 1.0, 1.0))
    assert float(loss.distance) == pytest.approx(0, abs=1e-9) and loss.gradient.abs().max() < 1e-9


def test_all_tokens_known_is_the_whole_distance() -> None:
    dense, student = logits(0), logits(1)
    loss = mixed_loss(student, TARGETS, teacher_of(dense, CLASSES, 1.0, 1.0))
    p, q = F.log_softmax(student, -1), F.log_softmax(dense, -1)
    assert torch.allclose(loss.distance, F.kl_div(p, q, log_target=True, reduction="sum"), rtol=1e-6)


def test_pieces_make_the_whole() -> None:
    dense, student = logits(0), logits(1)
    teacher = teacher_of(dense, 8, 0.5, 1.0)
    whole = mixed_loss(student, TARGETS, teacher)
    pieces = zip(student.split(3), TARGETS.split(3), teacher.split(3), strict=True)
    parts = [mixed_loss(*piece) for piece in pieces]
    assert torch.allclose(sum(part.distance for part in parts), whole.distance)
    assert torch.allclose(torch.cat([part.gradient for part in parts]), whole.gradient)


def test_half_precision_of_a_cache_changes_little() -> None:
    """The rest's probability comes from rounded numbers, so that it can be a little below 0."""
    dense, student = logits(0), logits(1)
    teacher = teacher_of(dense, CLASSES - 1, 0.5, 1.0)
    rounded = TeacherTokens(teacher.ids.int(), teacher.log_probabilities.half(), 0.5)
    exact, half = (mixed_loss(student, TARGETS, each) for each in (teacher, rounded))
    assert torch.allclose(half.distance, exact.distance, rtol=1e-2)
    assert torch.allclose(half.gradient, exact.gradient, atol=1e-3)
