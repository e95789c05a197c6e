"""Cross-entropy of many tokens over a large vocabulary, a piece at a time.

torch's own keeps logits, their logarithms and their gradients in fp32, which for a small model is more than its
weights. Here only a piece is ever in fp32, small enough to stay in a cache; and where the head is frozen, logits are
made a piece at a time too, turned into their gradient at once and forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Pieces(NamedTuple):
    """Elements of logits that are made together, and of those that are in fp32 together."""

    made: int
    wide: int


# what caches hold on a host; elsewhere few launches of kernels are what counts
PIECES, ELSEWHERE = {"cpu": Pieces(1 << 23, 1 << 19)}, Pieces(1 << 25, 1 << 25)


class _OfLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        total = _zero(logits)
        for part, wanted in _split(_sizes(logits).wide // logits.shape[-1], logits, targets):
            total += F.nll_loss(F.log_softmax(part, -1, dtype=total.dtype), wanted, reduction="sum")
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for part, wanted, made in _split(_sizes(logits).wide // logits.shape[-1], logits, targets, gradient):
            found = torch.softmax(part, -1, dtype=upstream.dtype).mul_(upstream)
            made.copy_(found.scatter_add_(1, wanted[:, None], -upstream.expand(len(wanted), 1)))
        return gradient, None


class _OfHidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        learns = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(hidden) if learns else None
        total, rows = _zero(hidden), _sizes(hidden).made // len(weight)
        for number, part in enumerate(hidden.split(max(1, rows))):
            start = number * max(1, rows)
            wanted = targets[start : start + len(part)]
            logits = F.linear(part, weight)
            total += _turned(logits, wanted, learns)
            if gradient is not None:
                torch.mm(logits, weight, out=gradient[start : start + len(part)])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None


def of_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum over rows of -log softmax(logits)[target], in nats: [n, classes], int64 [n] -> scalar, fp32 at least.

    Differentiable once. In fp32 the same as torch's, in bf16 and fp16 as torch's of `logits.float()`.
    """
    return _OfLogits.apply(logits, targets)


def of_hidden(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The same of the logits hidden @ weight^T, which are never there as a whole: [m, d], [classes, d], int64 [n <= m].

    Rows beyond the targets do not count. The gradient, of `hidden` alone, is made on the way forward, so that fp16,
    which needs its loss scaled before, is not for this.
    """
    return _OfHidden.apply(hidden, weight, targets)


def _turned(logits: Tensor, targets: Tensor, learns: bool) -> Tensor:
    """The loss of a piece; if it `learns`, the logits become their gradient in place."""
    total = _zero(logits)
    for part, wanted in _split(_sizes(logits).wide // logits.shape[-1], logits[: len(targets)], targets):
        logs = F.log_softmax(part, -1, dtype=total.dtype)
        total += F.nll_loss(logs, wanted, reduction="sum")
        if learns:
            part.copy_(logs.exp_().scatter_add_(1, wanted[:, None], logs.new_full((len(wanted), 1), -1.0)))
    logits[len(targets) :] = 0
    return total


def _sizes(tensor: Tensor) -> Pieces:
    return PIECES.get(tensor.device.type, ELSEWHERE)


def _split(rows: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(max(1, rows)) for tensor in tensors), strict=True) if len(tensors[0]) else iter(())


def _zero(like: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
