"""Modules by their paths."""

from __future__ import annotations

import pytest
from torch import nn

from apt_ds.models.modules import linear_at, replace_module
from tests.support import tiny


def test_a_linear_layer_is_found_and_replaced() -> None:
    model, layer = tiny.model(), nn.Linear(2, 3)
    path = "model.layers.1.mlp.up_proj"
    assert linear_at(model, path).out_features == 48
    replace_module(model, path, layer)
    assert linear_at(model, path) is layer
    with pytest.raises(AssertionError, match=r"model\.norm is a LlamaRMSNorm"):
        linear_at(model, "model.norm")
