"""The dense model's predictions in a short form, and the KL divergence of a masked model from them.

Of each prediction the `KEPT` largest log-probabilities remain, and one bucket for all other choices. The divergence
over these buckets is a lower bound of the whole divergence. With at most `KEPT` choices it is the whole one:

    KL = sum over buckets c of p_c (log p_c - log q_c),   p: dense, q: masked

Shapes: n predictions, C choices, K = min(C, KEPT).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from apt_ds.losses.task_loss import Logits

KEPT = 64
ELEMENTS = 1 << 22  # of the logits that are in fp32 at the same time
LEAST = 1e-6  # probability of the bucket, below which fp32 sums say nothing


class Prediction(NamedTuple):
    """One output of the dense model.

    Attributes:
        choices: int32 [n, K], the most probable choices.
        logs: fp32 [n, K], their log-probabilities. Of a regression: its value, [n, 1].
    """

    choices: Tensor
    logs: Tensor


@torch.no_grad()
def short_form(logits: Logits) -> list[Prediction]:
    """The short form of a batch's logits, on their device."""
    return [_short_form(output) for output in logits]


def _short_form(logits: Tensor) -> Prediction:
    count = min(logits.shape[-1], KEPT)
    if logits.shape[-1] == 1:
        return Prediction(torch.zeros_like(logits, dtype=torch.int32), logits.float())
    parts = [part.float().log_softmax(-1).topk(count) for part in logits.split(_rows(logits))]
    if not parts:
        return Prediction(logits.new_zeros(0, count, dtype=torch.int32), logits.new_zeros(0, count).float())
    return Prediction(torch.cat([part.indices.int() for part in parts]), torch.cat([part.values for part in parts]))


def divergence(logits: Logits, dense: list[Prediction]) -> Tensor:
    """The divergence from the dense predictions, summed over predictions. Differentiable.

    Args:
        logits: logits of the masked model, each [n, C].
        dense: the dense model's predictions for the same tokens.

    Returns:
        Scalar in nats, fp64. Of a regression: the squared difference. Start and end of an answer give their mean.
    """
    outputs = [_divergence(own, other) for own, other in zip(logits, dense, strict=True)]
    return torch.stack(outputs).mean()


def _divergence(logits: Tensor, dense: Prediction) -> Tensor:
    if logits.shape[-1] == 1:
        return (logits.float() - dense.logs).square().sum().double()
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    rows = _rows(logits)
    for own, choices, logs in zip(*(each.split(rows) for each in (logits, *dense)), strict=True):
        if own.requires_grad:
            # logarithms of one part exist at a time, in backward too
            total = total + checkpoint(_of_rows, own, choices, logs, use_reentrant=False)
        else:
            total += _of_rows(own, choices, logs)
    return total


def _of_rows(logits: Tensor, choices: Tensor, logs: Tensor) -> Tensor:
    """The divergence of some rows, fp64 []."""
    own = logits.float().log_softmax(-1).gather(-1, choices.long())
    probabilities = logs.exp()
    total = (probabilities * (logs - own)).sum(-1)
    if logits.shape[-1] > choices.shape[-1]:
        rest, own_rest = (1 - each.sum(-1) for each in (probabilities, own.exp()))
        rest, own_rest = rest.clamp(min=LEAST), own_rest.clamp(min=LEAST)
        total = total + rest * (rest.log() - own_rest.log())
    return total.double().sum()


def _rows(logits: Tensor) -> int:
    """Rows that are in fp32 at the same time."""
    return max(1, ELEMENTS // logits.shape[-1])
