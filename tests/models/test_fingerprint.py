"""The fingerprint of a model's weights."""

from __future__ import annotations

import torch
from torch import nn

from apt_ds.models.fingerprint import PIECE, fingerprint, signed


def one_weight(values: torch.Tensor) -> nn.Module:
    model = nn.Module()
    model.register_parameter("weight", nn.Parameter(values))
    return model


def test_value_position_and_piece_count() -> None:
    values = torch.zeros(2 * PIECE + 5)
    prints = {fingerprint(one_weight(values))}
    for place in (0, 1, PIECE, 2 * PIECE, 2 * PIECE + 1):
        changed = values.clone()
        changed[place] = 1.0
        prints.add(fingerprint(one_weight(changed)))
    assert len(prints) == 6
    assert fingerprint(one_weight(values.clone())) in prints
    assert fingerprint(one_weight(values.view(1, -1))) not in prints


def test_whole_numbers_wrap_at_64_bits() -> None:
    assert [signed(n) for n in (5, 2**63, 2**64 - 1, 2**64 + 3)] == [5, -(2**63), -1, 3]
