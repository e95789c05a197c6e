"""The short form of the dense model's predictions, and the divergence from it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apt_ds.losses import dense_predictions
from apt_ds.losses.dense_predictions import KEPT, divergence, short_form


def drawn(rows: int, choices: int, seed: int, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(rows, choices, generator=torch.Generator().manual_seed(seed))


def whole(own: Tensor, dense: Tensor) -> Tensor:
    return F.kl_div(own.double().log_softmax(-1), dense.double().log_softmax(-1), reduction="sum", log_target=True)


@pytest.mark.parametrize("choices", [2, 10, KEPT])
def test_few_choices_give_the_whole_divergence(choices: int) -> None:
    dense, own = drawn(7, choices, 0), drawn(7, choices, 1)
    assert divergence((own,), short_form((dense,))).item() == pytest.approx(whole(own, dense).item(), rel=1e-5)


def test_many_choices_give_a_near_lower_bound() -> None:
    dense = drawn(9, 1000, 0, spread=4.0)
    own = dense + drawn(9, 1000, 1, spread=1.0)
    short, expected = divergence((own,), short_form((dense,))).item(), whole(own, dense).item()
    assert 0.85 * expected < short <= expected
    assert divergence((dense,), short_form((dense,))).item() == pytest.approx(0.0, abs=1e-4)


def test_parts_of_the_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, own = drawn(11, 300, 0), drawn(11, 300, 1)
    expected = divergence((own,), short_form((dense,)))
    monkeypatch.setattr(dense_predictions, "ELEMENTS", 900)
    assert torch.allclose(divergence((own,), short_form((dense,))), expected)


def test_the_gradient_is_that_of_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_predictions, "ELEMENTS", 100)
    dense, own = drawn(5, 40, 0), drawn(5, 40, 1).requires_grad_()
    divergence((own,), short_form((dense,))).backward()
    assert own.grad is not None
    assert torch.allclose(own.grad, own.detach().softmax(-1) - dense.softmax(-1), atol=1e-5)


def test_values_spans_and_empty_batches_have_a_divergence() -> None:
    value, own = drawn(6, 1, 0), drawn(6, 1, 1)
    assert divergence((own,), short_form((value,))).item() == pytest.approx((own - value).square().sum().item())
    starts, ends = (drawn(4, 20, seed) for seed in (2, 3))
    # padding has the lowest number of the dtype
    for side in (starts, ends):
        side[:, 15:] = torch.finfo(side.dtype).min
    half = divergence((starts, starts), short_form((ends, starts))).item()
    assert half == pytest.approx(whole(starts[:, :15], ends[:, :15]).item() / 2, rel=1e-5)
    assert divergence((drawn(0, 90, 0),), short_form((drawn(0, 90, 0),))).item() == 0
