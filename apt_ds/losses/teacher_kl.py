"""The distance to a teacher whose distribution over the next token is known for its likeliest tokens only.

A teacher gives, for each trained token, the log-probabilities of its `k` likeliest tokens. The rest is one bucket. With
q the teacher's and p the student's probabilities at temperature T, and q_r, p_r those of the rest:

Loss: L = sum_j q_j (log q_j - log p_j) + q_r (log q_r - log p_r), summed over the k tokens j.
Gradient by the student's logits z: dL/dz_i = (p_i - q_i) / T for one of the k tokens, and (p_i - q_r p_i / p_r) / T for
one of the rest.

The loss of training is (1 - a) CE + a T^2 L (Hinton et al. 2015, "Distilling the knowledge in a neural network").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 1e-8  # probability of the rest that the logarithm may see


@dataclass(frozen=True)
class TeacherTokens:
    """What a teacher says of some trained tokens.

    Attributes:
        ids: int32 or int64 [n, k], its likeliest tokens.
        log_probabilities: [n, k], their log-probabilities at `temperature`.
        weight: a, the part of the distance in the loss.
        temperature: T.
    """

    ids: Tensor
    log_probabilities: Tensor
    weight: float
    temperature: float = 1.0

    def rows(self, start: int, stop: int) -> TeacherTokens:
        """The tokens from `start` to `stop`."""
        return replace(self, ids=self.ids[start:stop], log_probabilities=self.log_probabilities[start:stop])

    def split(self, rows: int) -> Iterator[TeacherTokens]:
        """All tokens in pieces of `rows`."""
        return (self.rows(start, start + rows) for start in range(0, len(self.ids), rows))

    def mix(self, cross_entropy: Tensor, distance: Tensor) -> Tensor:
        """(1 - a) CE + a T^2 L."""
        return (1 - self.weight) * cross_entropy + self.weight * self.temperature**2 * distance


class MixedLoss(NamedTuple):
    """The two terms of the loss, and the gradient of their mix.

    Attributes:
        cross_entropy: CE summed over tokens, in nats, [].
        distance: L summed over tokens, in nats, [].
        gradient: that of (1 - a) CE + a T^2 L by the logits, [n, classes].
    """

    cross_entropy: Tensor
    distance: Tensor
    gradient: Tensor


def mixed_loss(logits: Tensor, targets: Tensor, teacher: TeacherTokens) -> MixedLoss:
    """Both terms of the loss, and the gradient of their mix.

    Args:
        logits: fp32 or fp64 [n, classes], of the student.
        targets: int64 [n].
        teacher: of the same tokens.
    """
    a, t = teacher.weight, teacher.temperature
    log_p = F.log_softmax(logits, -1)
    cross_entropy = F.nll_loss(log_p, targets, reduction="sum")
    # one softmax serves both terms at temperature 1
    scaled_log_p = log_p if t == 1 else F.log_softmax(logits / t, -1)
    ids, q_log = teacher.ids.long(), teacher.log_probabilities.to(logits.dtype)
    q = q_log.exp()
    q_rest = (1 - q.sum(-1)).clamp(min=0)
    p_log = scaled_log_p.gather(1, ids)
    p = p_log.exp()
    p_rest = (1 - p.sum(-1)).clamp(min=SMALLEST)
    rest = q_rest * (q_rest.clamp(min=SMALLEST).log() - p_rest.log())
    distance = (q * (q_log - p_log)).sum() + rest.sum()
    # the rest first, then the k tokens, then the target
    of_rest = (a * t * (1 - q_rest / p_rest))[:, None]
    if t == 1:
        gradient = log_p.exp_().mul_(of_rest + (1 - a))
    else:
        gradient = scaled_log_p.exp_().mul_(of_rest).add_(log_p.exp_(), alpha=1 - a)
    of_known = a * t * (p - q) - of_rest * p
    gradient.scatter_add_(1, ids, of_known)
    gradient.scatter_add_(1, targets[:, None], torch.full_like(logits[:, :1], a - 1))
    return MixedLoss(cross_entropy, distance, gradient)
