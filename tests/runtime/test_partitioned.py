"""Shares and shapes of weights that no engine has partitioned. `integration/test_zero.py` has those of stage 3."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from apt_ds.runtime import collectives, zero


def weight() -> nn.Parameter:
    return nn.Parameter(torch.arange(10.0).view(2, 5))


@pytest.mark.parametrize("world", [1, 3, 4, 12])
def test_the_shares_of_all_ranks_make_the_whole(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "world_size", lambda: world)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
        start, values = zero.own_part(weight())
        assert start == sum(len(share) for share in shares)
        shares.append(values)
    assert torch.equal(torch.cat(shares), torch.arange(10.0))


def test_a_plain_weight_is_whole_on_every_rank() -> None:
    plain = weight()
    assert zero.full_shape(plain) == (2, 5) and zero.full_numel(plain) == 10
    assert torch.equal(zero.held_part(plain), plain) and not zero.is_partitioned(nn.Linear(2, 2))
    with zero.gathered([plain]):
        assert torch.equal(plain.flatten(), torch.arange(10.0))
    zero.release(plain)
    assert plain.numel() == 0
