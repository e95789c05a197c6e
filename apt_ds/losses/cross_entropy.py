"""Cross-entropy of many tokens over a large vocabulary, one chunk of rows at a time.

`torch.nn.functional.cross_entropy` keeps the logits, their logarithms and their gradients in fp32. For a small model
these take more memory than the weights. Here only one chunk is in fp32 at a time, and on a CPU that chunk fits the
cache. Where the LM head is frozen, `of_hidden` also computes the logits chunk by chunk. It turns each chunk into its
gradient and then discards it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from apt_ds.models.logit_transform import IDENTITY, LogitTransform


class ChunkSizes(NamedTuple):
    """Elements of one chunk.

    Attributes:
        logits: Elements of the logits that one matrix product computes.
        fp32: Elements of the logits that are in fp32 at the same time.
    """

    logits: int
    fp32: int


# a CPU wants chunks that fit its caches. A GPU wants few kernel launches
CHUNK_SIZES = {"cpu": ChunkSizes(1 << 23, 1 << 19)}
OTHER_DEVICES = ChunkSizes(1 << 25, 1 << 25)
_ASSUMED: ContextVar[str] = ContextVar("assumed device type", default="")


@contextmanager
def chunks_of(device_type: str) -> Iterator[None]:
    """Inside the context chunks have the sizes of a device of this type, for estimates of its memory."""
    token = _ASSUMED.set(device_type)
    try:
        yield
    finally:
        _ASSUMED.reset(token)


class _OfLogits(torch.autograd.Function):
    """Loss and gradient of given logits.

    Loss: L = sum_i (logsumexp(z_i) - z_i[t_i]), z_i a row of logits and t_i its target.
    Gradient: dL/dz_i = softmax(z_i) - onehot(t_i).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        total = zero_like(logits)
        for chunk, chunk_targets in chunks(fp32_rows(logits), logits, targets):
            log_probabilities = F.log_softmax(chunk, -1, dtype=total.dtype)
            total += F.nll_loss(log_probabilities, chunk_targets, reduction="sum")
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for chunk, chunk_targets, chunk_gradient in chunks(fp32_rows(logits), logits, targets, gradient):
            scaled = torch.softmax(chunk, -1, dtype=upstream.dtype).mul_(upstream)
            minus_upstream = -upstream.expand(len(chunk_targets), 1)
            chunk_gradient.copy_(scaled.scatter_add_(1, chunk_targets[:, None], minus_upstream))
        return gradient, None


class _OfHidden(torch.autograd.Function):
    """Loss and gradient of hidden states under a frozen LM head.

    With h_i a row of hidden states, W the head's weight, y_i = W h_i, z_i = f(y_i) its logits and t_i its target:

    Loss: L = sum_i (logsumexp(z_i) - z_i[t_i]).
    Gradient: dL/dh_i = W^T (f'(y_i) * (softmax(z_i) - onehot(t_i))).

    f is what the family does after the head, a `LogitTransform`.

    `forward` computes both, because the logits of a chunk exist only there. `backward` only multiplies the stored
    gradient, which has the shape and dtype of the hidden states, by the upstream gradient.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, transform: LogitTransform) -> Tensor:
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(hidden) if needs_gradient else None
        total = zero_like(hidden)
        rows = max(1, chunk_sizes(hidden).logits // len(weight))
        for number, chunk in enumerate(hidden.split(rows)):
            start = number * rows
            logits = F.linear(chunk, weight)
            total += _loss_of_chunk(logits, targets[start : start + len(chunk)], needs_gradient, transform)
            if gradient is not None:
                torch.mm(logits, weight, out=gradient[start : start + len(chunk)])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None, None


def of_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy summed over rows. Differentiable once.

    In fp32 it equals `F.cross_entropy`. In bf16 and fp16 it equals `F.cross_entropy` of `logits.float()`.

    Args:
        logits: [n, classes].
        targets: int64 [n].

    Returns:
        Scalar in nats, in fp32 or the wider dtype of the logits.
    """
    return _OfLogits.apply(logits, targets)


def of_hidden(hidden: Tensor, weight: Tensor, targets: Tensor, transform: LogitTransform = IDENTITY) -> Tensor:
    """Cross-entropy of the logits f(hidden @ weight^T), summed over rows. The logits never exist as a whole.

    Only `hidden` gets a gradient. The forward pass computes that gradient before the loss is scaled. So fp16, which
    needs a scaled loss, must not use this function.

    Args:
        hidden: [m, d].
        weight: [classes, d], frozen.
        targets: int64 [n], n <= m. Rows of `hidden` after the first n have no loss and no gradient.
        transform: f, what the family does after the LM head.

    Returns:
        Scalar in nats, in fp32 or the wider dtype of `hidden`.
    """
    return _OfHidden.apply(hidden, weight, targets, transform)


def _loss_of_chunk(logits: Tensor, targets: Tensor, needs_gradient: bool, transform: LogitTransform) -> Tensor:
    """The loss of one chunk.

    Args:
        logits: [rows, classes], the output of the LM head. With `needs_gradient` it becomes its gradient in place.
        targets: int64 [n], n <= rows.
        needs_gradient: Whether to overwrite the logits.
        transform: What the family does after the LM head.
    """
    total = zero_like(logits)
    for chunk, chunk_targets in chunks(fp32_rows(logits), logits[: len(targets)], targets):
        transformed = chunk if transform.is_identity else transform.apply(chunk.to(total.dtype))
        log_probabilities = F.log_softmax(transformed, -1, dtype=total.dtype)
        total += F.nll_loss(log_probabilities, chunk_targets, reduction="sum")
        if needs_gradient:
            minus_one = log_probabilities.new_full((len(chunk_targets), 1), -1.0)
            gradient = log_probabilities.exp_().scatter_add_(1, chunk_targets[:, None], minus_one)
            chunk.copy_(gradient if transform.is_identity else gradient.mul_(transform.derivative(transformed)))
    logits[len(targets) :] = 0
    return total


def chunk_sizes(tensor: Tensor) -> ChunkSizes:
    """Elements of a chunk on the device of a tensor."""
    return CHUNK_SIZES.get(_ASSUMED.get() or tensor.device.type, OTHER_DEVICES)


def fp32_rows(logits: Tensor) -> int:
    """Rows of the logits that are in fp32 at the same time."""
    return max(1, chunk_sizes(logits).fp32 // logits.shape[-1])


def chunks(rows: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors, split along their first dimension into chunks of `rows`."""
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True) if len(tensors[0]) else iter(())


def zero_like(like: Tensor) -> Tensor:
    """A scalar 0 on the device of a tensor, in fp32 or its wider dtype."""
    return torch.zeros((), dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
