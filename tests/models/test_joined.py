"""Weights that are written as one."""

from __future__ import annotations

import torch

from apt_ds.models.export.joined import JoinedWeights


def test_parts_come_in_any_order_and_end_in_their_own() -> None:
    joined = JoinedWeights({"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")})
    parts = {name: torch.full((rows, 2), float(rows)) for rows, name in enumerate(("q", "k", "v", "gate", "up"), 1)}
    assert "k" in joined and "qkv" not in joined and "o" not in joined
    assert joined.add("v", parts["v"]) is None and joined.add("gate", parts["gate"]) is None
    assert joined.add("q", parts["q"]) is None
    name, value = joined.add("k", parts["k"]) or ("", torch.empty(0))
    assert name == "qkv" and torch.equal(value, torch.cat([parts["q"], parts["k"], parts["v"]]))
    name, value = joined.add("up", parts["up"]) or ("", torch.empty(0))
    assert name == "gate_up" and torch.equal(value, torch.cat([parts["gate"], parts["up"]]))
