"""The hard concrete distribution against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apt_ds.pruning import hard_concrete
from apt_ds.pruning.hard_concrete import BETA, GAMMA, ZETA

LOG_ALPHA = torch.tensor([-6.0, -2.0, -0.5, 0.0, 1.0, 4.0], dtype=torch.float64)


def test_constants_are_those_of_the_paper() -> None:
    assert (pytest.approx(2 / 3), -0.1, 1.1) == (BETA, GAMMA, ZETA)


def test_a_sample_is_the_stretched_concrete_variable_of_its_noise() -> None:
    u = np.linspace(0.05, 0.95, 6)
    s = 1 / (1 + np.exp(-(np.log(u) - np.log(1 - u) + LOG_ALPHA.numpy()) / (2 / 3)))
    expected = np.minimum(1, np.maximum(0, s * (1.1 + 0.1) - 0.1))
    assert np.allclose(hard_concrete.sample(LOG_ALPHA, torch.from_numpy(u)), expected, atol=1e-12)


def test_the_probability_is_the_share_of_noise_that_leaves_a_gate_open() -> None:
    """Z > 0 where u exceeds 1 - P(z != 0): the closed form against the samples themselves."""
    closed = 1.0 - hard_concrete.probability(LOG_ALPHA)
    assert (hard_concrete.sample(LOG_ALPHA, closed + 1e-4) > 0).all()
    assert (hard_concrete.sample(LOG_ALPHA, closed - 1e-4) == 0).all()
    uniform = torch.from_numpy(np.random.default_rng(0).random((200_000, 1)))
    share = (hard_concrete.sample(LOG_ALPHA, uniform) != 0).double().mean(0)
    assert torch.allclose(share, hard_concrete.probability(LOG_ALPHA), atol=5e-3)


def test_the_gate_without_noise() -> None:
    gate = hard_concrete.deterministic(LOG_ALPHA)
    assert torch.allclose(gate, (torch.sigmoid(LOG_ALPHA) * 1.2 - 0.1).clamp(0, 1), atol=1e-12)
    assert gate[[0, 3, -1]].tolist() == pytest.approx([0.0, 0.5, 1.0])


def test_the_extremes_of_the_noise_are_finite() -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    alpha = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    gate = hard_concrete.sample(alpha, ends)
    gate.sum().backward()
    assert gate.tolist() == [0.0, 1.0] and alpha.grad is not None and alpha.grad.tolist() == [0.0, 0.0]
