"""The hard concrete distribution of a gate. Pure functions, elementwise, in the dtype of their input.

C. Louizos, M. Welling, D. Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018:

    s = sigmoid((log u - log(1 - u) + log alpha) / beta),   u uniform on (0, 1)
    z = min(1, max(0, s (zeta - gamma) + gamma))
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BETA = 2.0 / 3.0
GAMMA, ZETA = -0.1, 1.1
EDGE = 1e-6  # u keeps this distance from 0 and 1


def probability(log_alpha: Tensor) -> Tensor:
    """P(z != 0) = sigmoid(log alpha - beta log(-gamma / zeta))."""
    return torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


def sample(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """The gate z that the noise u gives, 0 to 1. Differentiable in log alpha where 0 < z < 1."""
    u = uniform.clamp(EDGE, 1.0 - EDGE)
    return _stretched(torch.sigmoid((u.log() - (1.0 - u).log() + log_alpha) / BETA))


def deterministic(log_alpha: Tensor) -> Tensor:
    """The gate without noise, of an evaluation: min(1, max(0, sigmoid(log alpha) (zeta - gamma) + gamma))."""
    return _stretched(torch.sigmoid(log_alpha))


def _stretched(s: Tensor) -> Tensor:
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)
