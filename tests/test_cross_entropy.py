"""The loss over a large vocabulary, made a piece at a time, against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apt_ds import cross_entropy
from apt_ds.cross_entropy import summed_cross_entropy
from apt_ds.footprint import Live

WORDS = 50


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows at a time."""
    monkeypatch.setattr(cross_entropy, "PIECES", {"cpu": 7 * WORDS + 3})


def drawn(rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = 5 * torch.randn(rows, WORDS, generator=generator)
    targets = torch.randint(WORDS, (rows,), generator=generator)
    return logits.to(dtype).requires_grad_(), targets


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 7, 23])
def test_loss_and_gradient_are_torchs(rows: int, dtype: torch.dtype) -> None:
    logits, targets = drawn(rows, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    expected = F.cross_entropy(logits.to(wide), targets, reduction="sum")
    (gradient,) = torch.autograd.grad(3 * expected, logits)
    found = summed_cross_entropy(logits, targets)
    (3 * found).backward()
    assert found.dtype == wide and logits.grad is not None and logits.grad.dtype == dtype
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(logits.grad, gradient)


def test_no_tokens_lose_nothing() -> None:
    logits, targets = drawn(0, torch.bfloat16)
    found = summed_cross_entropy(logits, targets)
    found.backward()
    assert found.item() == 0.0 and found.dtype == torch.float32 and logits.grad.shape == (0, WORDS)


def test_only_a_piece_is_ever_wide() -> None:
    """Beside logits and gradient, both in bf16: torch's own holds more than twice as much."""
    logits, targets = drawn(700, torch.bfloat16)
    with Live(torch.nn.Module()) as live:
        summed_cross_entropy(logits, targets).backward()
    with Live(torch.nn.Module()) as torchs:
        F.cross_entropy(logits.float(), targets, reduction="sum").backward()
    assert live.peak < 2.2 * logits.nbytes < torchs.peak / 2
