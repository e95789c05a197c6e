"""Products of the neurons of experts, against those of each expert alone (`products.py`)."""

from __future__ import annotations

import pytest
import torch

from apt_ds.pruning.activation_hooks import CountedTokens
from apt_ds.pruning.products import PRODUCTS
from apt_ds.pruning.slot_products import Slots

TOKENS, EXPERTS, NEURONS = 12, 3, 4


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("packed", [False, True])
def test_an_expert_has_the_products_of_the_tokens_that_reach_it(product: str, packed: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    reached = torch.rand(TOKENS, EXPERTS, generator=draw) > 0.4
    experts, tokens = reached.T.nonzero(as_tuple=True)
    x, gradient = (torch.randn(len(tokens), NEURONS, generator=draw) for _ in range(2))
    valid = torch.ones(1, TOKENS)
    valid[0, [3, 11]] = 0
    # two rows of 6 tokens, or one row with examples of 5 and 7
    members = torch.stack([torch.arange(TOKENS) < 5, torch.arange(TOKENS) >= 5]).float() * valid if packed else None
    counted = CountedTokens(valid, None, members, 1 if packed else 2)
    sums = torch.zeros(2, EXPERTS * NEURONS)
    commit = PRODUCTS[product]().watch_slots(x, Slots(experts, tokens, counted, EXPERTS), sums)
    assert not sums.any()
    commit(gradient)
    for expert in range(EXPERTS):
        # the same tokens in a row, with nothing where the expert is not reached
        dense = torch.zeros(2, TOKENS, NEURONS)
        own = experts == expert
        dense[0, tokens[own]], dense[1, tokens[own]] = x[own], gradient[own]
        rows = dense.view(2, counted.rows, -1, NEURONS)
        expected = torch.zeros(2, NEURONS)
        PRODUCTS[product]().watch(rows[0], counted, expected)(rows[1])
        assert torch.allclose(sums.view(2, EXPERTS, NEURONS)[:, expert], expected, atol=1e-5)
