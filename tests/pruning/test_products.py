"""The two first-order products, on one hooked module (METHOD.md section 3)."""

from __future__ import annotations

import pytest
import torch

from apt_ds.pruning.activation_hooks import CountedTokens, example_members
from apt_ds.pruning.products import PRODUCTS, BatchProduct, PerExampleProduct, column_mass, column_norm

MASK = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])


def drawn(seed: int) -> torch.Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed))


def sums_of(product: str, tokens: CountedTokens, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    sums = torch.zeros(2, x.shape[-1])
    commit = PRODUCTS[product]().watch(x, tokens, sums)
    assert not sums.any()  # nothing counts before its gradient arrives
    commit(gradient)
    return sums


@pytest.mark.parametrize("lean", [False, True])
def test_products_are_those_of_the_definition(lean: bool) -> None:
    blank = (MASK.flatten() == 0).nonzero().squeeze(1) if lean else None
    tokens, x, gradient = CountedTokens(MASK.reshape(1, -1), blank), drawn(0), drawn(1)
    mask = MASK.unsqueeze(-1)
    a, g = (x * mask).abs().sum((0, 1)), (gradient * mask).abs().sum((0, 1))
    batch, each = (sums_of(product, tokens, x, gradient) for product in ("batch", "per_example"))
    assert torch.allclose(batch, torch.stack([a, g]), rtol=1e-5) and torch.allclose(each[0], a, rtol=1e-5)
    assert torch.allclose(BatchProduct().first_order(batch), a * g, rtol=1e-5)
    expected = (x * gradient * mask).sum(1).abs().sum(0)
    assert torch.allclose(PerExampleProduct().first_order(each), expected, rtol=1e-5)


def test_packed_examples_are_products_of_their_own() -> None:
    """One row of three examples equals three rows."""
    positions = torch.tensor([[0, 1, 0, 1, 2, 0]])
    mask = torch.ones(1, 6)
    x, gradient = (drawn(seed).reshape(1, 6, 4) for seed in (0, 1))
    members = example_members(mask, positions, torch.float32)
    assert members.tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1]]
    packed = sums_of("per_example", CountedTokens(mask, None, members), x, gradient)[1]
    apart = sum(
        sums_of("per_example", CountedTokens(torch.ones(1, stop - start)), x[:, start:stop], gradient[:, start:stop])[1]
        for start, stop in ((0, 2), (2, 5), (5, 6))
    )
    assert torch.allclose(packed, apart, rtol=1e-5)


def test_half_precision_products_do_not_overflow() -> None:
    x = torch.full((1, 2, 1), 300.0, dtype=torch.float16)
    assert sums_of("per_example", CountedTokens(torch.ones(1, 2)), x, x)[1].item() == 2 * 300.0**2


@pytest.mark.parametrize("padded", [0, 5])
def test_both_ways_to_sum_a_column_agree(padded: int) -> None:
    x = torch.randn(3, 8, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 8)
    mask[1, 8 - padded :] = 0
    blank = (mask.flatten() == 0).nonzero().squeeze(1)
    assert torch.allclose(column_norm(blank, x), column_mass(mask.reshape(1, -1), x), rtol=1e-6)
    assert (column_norm(torch.arange(24), x) == 0).all()
