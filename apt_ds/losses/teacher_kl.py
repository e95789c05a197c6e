"""The distance to a teacher whose distribution over the next token is known for its likeliest tokens only.

A teacher gives, for each trained token, the log-probabilities of its `k` likeliest tokens. The rest is one bucket. With
q the teacher's and p the student's probabilities at temperature T, and q_r, p_r those of the rest:

Loss: L = sum_j q_j (log q_j - log p_j) + q_r (log q_r - log p_r), summed over the k tokens j.
Gradient by the student's logits z: dL/dz_i = (p_i - q_i) / T for one of the k tokens, and (p_i - q_r p_i / p_r) / T for
one of the rest.

The loss of training is (1 - a) CE + a T^2 L (Hinton et al. 2015, "Distilling the knowledge in a neural network").
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 1e-8  # probability of the rest that the logarithm may see


@dataclass(frozen=True)
class TeacherTokens:
    """What a teacher says of some trained tokens.

    Attributes:
        ids: int64 [n, k], its likeliest tokens.
        log_probabilities: fp32 [n, k], their log-probabilities at `temperature`.
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


def mixed_loss(logits: Tensor, targets: Tensor, teacher: TeacherTokens) -> tuple[Tensor, Tensor]:
    """(1 - a) CE + a T^2 L, summed over tokens, and its gradient by the logits.

    Args:
        logits: fp32 or fp64 [n, classes], of the student.
        targets: int64 [n].
        teacher: of the same tokens.

    Returns:
        A scalar in nats, and [n, classes].
    """
    a, t = teacher.weight, teacher.temperature
    log_probabilities = F.log_softmax(logits, -1)
    loss = (1 - a) * F.nll_loss(log_probabilities, targets, reduction="sum")
    gradient = log_probabilities.exp().scatter_add_(1, targets[:, None], -torch.ones_like(logits[:, :1])).mul_(1 - a)
    distance, of_distance = _distance(logits / t, teacher)
    return loss + a * t * t * distance, gradient.add_(of_distance, alpha=a * t)


def _distance(scaled: Tensor, teacher: TeacherTokens) -> tuple[Tensor, Tensor]:
    """L and its gradient by the scaled logits z / T, [n, classes]."""
    q_log = teacher.log_probabilities.to(scaled.dtype)
    q = q_log.exp()
    q_rest = (1 - q.sum(-1)).clamp(min=0)
    probabilities = torch.softmax(scaled, -1)
    p = probabilities.gather(1, teacher.ids)
    p_rest = (1 - p.sum(-1)).clamp(min=SMALLEST)
    p_log = F.log_softmax(scaled, -1).gather(1, teacher.ids)
    rest = q_rest * (q_rest.clamp(min=SMALLEST).log() - p_rest.log())
    loss = (q * (q_log - p_log)).sum() + rest.sum()
    # as if all tokens were of the rest, then the k tokens
    gradient = probabilities * (1 - q_rest / p_rest)[:, None]
    return loss, gradient.scatter_(1, teacher.ids, p - q)
