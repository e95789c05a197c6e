"""Cross-entropy of many tokens over a large vocabulary, a piece at a time.

torch's own keeps logits, their logarithms and their gradients in fp32, which for a small model is more than its
weights. Here logits and gradients stay as they are made; only a piece of them is ever in fp32, and small enough to
stay in a cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

PIECES = {"cpu": 1 << 19}  # elements
PIECE = 1 << 25  # of other devices, which are slow to start on small ones


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        losses = [F.nll_loss(_logs(part), wanted, reduction="sum") for part, wanted in _pieces(logits, targets)]
        return torch.stack(losses).sum() if losses else logits.new_zeros((), dtype=_wide(logits))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for part, wanted, made in _pieces(logits, targets, gradient):
            found = torch.softmax(part, -1, dtype=_wide(part)).mul_(upstream)
            made.copy_(found.scatter_add_(1, wanted[:, None], -upstream.expand(len(wanted), 1)))
        return gradient, None


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum over rows of -log softmax(logits)[target], in nats: [n, classes], int64 [n] -> scalar, fp32 at least.

    Differentiable once. In fp32 the same as torch's, in bf16 and fp16 as torch's of `logits.float()`.
    """
    return _Summed.apply(logits, targets)


def _pieces(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    rows = max(1, PIECES.get(logits.device.type, PIECE) // logits.shape[-1])
    return zip(*(tensor.split(rows) for tensor in (logits, *others)), strict=True) if len(logits) else iter(())


def _logs(logits: Tensor) -> Tensor:
    return F.log_softmax(logits, -1, dtype=_wide(logits))


def _wide(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)
