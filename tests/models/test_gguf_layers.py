"""What sizes by layer become in GGUF."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from apt_ds.models.export.gguf_layers import ZERO_NEURONS, interleave, sizes_by_layer, split, zero_projections


def job(layout: str = "deci") -> dict[str, Any]:
    """Two layers, the first without heads, the second without neurons. Two queries for each key, heads of 4."""
    return {
        "head_dim": 4,
        "queries_per_group": 2,
        "hidden": 6,
        "groups": [0, 3],
        "neurons": [5, 0],
        "layout": layout,
    }


def test_no_sublayer_is_empty() -> None:
    sizes = sizes_by_layer(job())
    assert sizes["num_attention_heads"] == [2, 6] and sizes["num_key_value_heads"] == [1, 3]
    assert sizes["intermediate_size"] == [5, ZERO_NEURONS] and sizes["head_dim"] == 4


@pytest.mark.parametrize("layout", ["deci", "openelm"])
def test_an_empty_sublayer_has_one_unit_of_zeros(layout: str) -> None:
    first, second = (dict(zero_projections(job(layout), layer)) for layer in range(2))
    norms = [name for name, value in first.items() if (value == 1).all()]
    assert norms == [f"model.layers.0.self_attn.{n}_norm.weight" for n in "qk" if layout == "openelm"]
    shapes = {name.split(".")[-2]: tuple(value.shape) for name, value in first.items() if not value.any()}
    assert shapes == {"q_proj": (8, 6), "k_proj": (4, 6), "v_proj": (4, 6), "o_proj": (6, 8)}
    neurons = {name.split(".")[-2]: tuple(value.shape) for name, value in second.items()}
    assert neurons == {"gate_proj": (ZERO_NEURONS, 6), "up_proj": (ZERO_NEURONS, 6), "down_proj": (6, ZERO_NEURONS)}


def test_joined_projections_are_split_by_rows() -> None:
    data = torch.arange(48.0).view(48, 1)
    parts = dict(split("model.layers.1.self_attn.qkv_proj.weight", data, 3, job()))
    assert [len(part) for part in parts.values()] == [24, 12, 12] and torch.equal(torch.cat([*parts.values()]), data)
    assert [*parts] == [f"model.layers.1.self_attn.{name}_proj.weight" for name in "qkv"]
    gates = dict(split("model.layers.1.mlp.gate_up_proj.weight", data, 3, job()))
    assert [len(part) for part in gates.values()] == [24, 24]
    assert [*dict(split("model.norm.weight", data, 0, job()))] == ["model.norm.weight"]


def test_halves_of_heads_alternate() -> None:
    assert interleave(torch.arange(8.0), 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
