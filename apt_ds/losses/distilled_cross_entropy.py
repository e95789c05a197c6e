"""(1 - a) CE + a T^2 L of many tokens over a large vocabulary, one chunk of rows at a time.

L is the distance to a teacher (`teacher_kl.py`). The chunks are those of `cross_entropy.py`: the logits of a frozen LM
head never exist as a whole, and each chunk becomes its gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from apt_ds.losses.cross_entropy import chunk_sizes, chunks, fp32_rows, zero_like
from apt_ds.losses.teacher_kl import TeacherTokens, mixed_loss
from apt_ds.models.logit_transform import IDENTITY, LogitTransform


class DistilledLoss(NamedTuple):
    """A loss under a teacher, summed over tokens.

    Attributes:
        loss: (1 - a) CE + a T^2 L in nats, [], with a gradient.
        cross_entropy: CE in nats, [], without a gradient.
        distance: L in nats, [], without a gradient.
    """

    loss: Tensor
    cross_entropy: Tensor
    distance: Tensor


class _OfLogits(torch.autograd.Function):
    """Loss and gradient of given logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, teacher: TeacherTokens) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(logits, targets)
        ctx.teacher = teacher
        cross_entropy, distance, rows = zero_like(logits), zero_like(logits), fp32_rows(logits)
        for (chunk, chunk_targets), known in zip(chunks(rows, logits, targets), teacher.split(rows), strict=True):
            mixed = mixed_loss(chunk.to(cross_entropy.dtype), chunk_targets, known)
            cross_entropy += mixed.cross_entropy
            distance += mixed.distance
        ctx.mark_non_differentiable(cross_entropy, distance)
        return teacher.mix(cross_entropy, distance), cross_entropy, distance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        logits, targets = ctx.saved_tensors
        gradient, rows = torch.empty_like(logits), fp32_rows(logits)
        pieces = zip(chunks(rows, logits, targets, gradient), ctx.teacher.split(rows), strict=True)
        for (chunk, chunk_targets, chunk_gradient), known in pieces:
            mixed = mixed_loss(chunk.to(upstream.dtype), chunk_targets, known)
            chunk_gradient.copy_(mixed.gradient.mul_(upstream))
        return gradient, None, None


class _OfHidden(torch.autograd.Function):
    """Loss and gradient of hidden states under a frozen LM head, as `cross_entropy._OfHidden` computes them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, teacher: TeacherTokens, transform: LogitTransform
    ) -> tuple[Tensor, Tensor, Tensor]:
        gradient = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        cross_entropy, distance = zero_like(hidden), zero_like(hidden)
        rows = max(1, chunk_sizes(hidden).logits // len(weight))
        for start in range(0, len(hidden), rows):
            chunk, stop = hidden[start : start + rows], start + rows
            logits = F.linear(chunk, weight)
            terms = _terms_of_chunk(logits, targets[start:stop], teacher.rows(start, stop), transform)
            cross_entropy += terms[0]
            distance += terms[1]
            if gradient is not None:
                torch.mm(logits, weight, out=gradient[start:stop])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(cross_entropy, distance)
        return teacher.mix(cross_entropy, distance), cross_entropy, distance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None, None, None


def of_logits(logits: Tensor, targets: Tensor, teacher: TeacherTokens) -> DistilledLoss:
    """The loss of given logits, summed over rows. Differentiable once.

    Args:
        logits: [n, classes].
        targets: int64 [n].
        teacher: of the same n tokens.
    """
    return DistilledLoss(*_OfLogits.apply(logits, targets, teacher))


def of_hidden(
    hidden: Tensor, weight: Tensor, targets: Tensor, teacher: TeacherTokens, transform: LogitTransform = IDENTITY
) -> DistilledLoss:
    """The loss of the logits f(hidden @ weight^T), summed over rows. The logits never exist as a whole.

    Only `hidden` gets a gradient. The forward pass computes that gradient before the loss is scaled. So fp16, which
    needs a scaled loss, must not use this function.

    Args:
        hidden: [m, d].
        weight: [classes, d], frozen.
        targets: int64 [n], n <= m. Rows of `hidden` after the first n have no loss and no gradient.
        teacher: of the same n tokens.
        transform: f, what the family does after the LM head.
    """
    return DistilledLoss(*_OfHidden.apply(hidden, weight, targets, teacher, transform))


def _terms_of_chunk(
    logits: Tensor, targets: Tensor, teacher: TeacherTokens, transform: LogitTransform
) -> tuple[Tensor, Tensor]:
    """CE and L of one chunk. The logits become their gradient in place.

    Args:
        logits: [rows, classes], the output of the LM head.
        targets: int64 [n], n <= rows.
        teacher: of the n tokens.
        transform: What the family does after the LM head.
    """
    cross_entropy, distance, rows = zero_like(logits), zero_like(logits), fp32_rows(logits)
    pieces = zip(chunks(rows, logits[: len(targets)], targets), teacher.split(rows), strict=True)
    for (chunk, chunk_targets), known in pieces:
        transformed = transform.apply(chunk.to(cross_entropy.dtype))
        mixed = mixed_loss(transformed, chunk_targets, known)
        cross_entropy += mixed.cross_entropy
        distance += mixed.distance
        chunk.copy_(mixed.gradient if transform.is_identity else mixed.gradient * transform.derivative(transformed))
    logits[len(targets) :] = 0
    return cross_entropy, distance
