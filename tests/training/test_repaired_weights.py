"""Repaired weights come back from a checkpoint bit for bit, quantized or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from apt_ds.models import quantization
from apt_ds.models.export.apt_emptied_sublayers import Bias
from apt_ds.runtime.packed import QuantizedParameter
from apt_ds.training import repaired_weights
from apt_ds.training.checkpoint import ShardWriter
from apt_ds.training.checkpoint.shards import read
from tests.support import tiny

PATHS = ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj"]


def model_of(bits: int, seed: int) -> nn.Module:
    model = tiny.model("gqa", seed, hidden_size=64, intermediate_size=128).requires_grad_(False)
    quantization.hold(model, PATHS, bits, torch.float32)
    return model


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_weights_survive_a_checkpoint(bits: int, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    saved, fresh = model_of(bits, 1), model_of(bits, 2)
    if bits < 16:
        saved.get_submodule(PATHS[0]).weight.requantization_error = 0.125
    shards = ShardWriter(tmp_path)
    repaired_weights.add(saved, PATHS, shards)
    shards.close()
    files = [path.name for path in tmp_path.iterdir()]
    repaired_weights.load(fresh, read(tmp_path, files)[repaired_weights.GROUP])
    for path in PATHS:
        old, new = saved.get_submodule(path).weight, fresh.get_submodule(path).weight
        assert type(old) is type(new) and torch.equal(quantization.dense(old), quantization.dense(new))
        assert not new.requires_grad
        if isinstance(old, QuantizedParameter):
            assert torch.equal(old.codes(), new.codes()) and new.bits == bits
            assert new.requantization_error == old.requantization_error


def test_trained_weights_are_left_to_the_engine(tmp_path: Path) -> None:
    model = model_of(16, 1).requires_grad_(True)
    shards = ShardWriter(tmp_path)
    repaired_weights.add(model, PATHS, shards)
    shards.close()
    assert not list(tmp_path.iterdir())


def test_a_sublayer_that_a_later_cut_has_emptied_has_no_weight_to_save(tmp_path: Path) -> None:
    model = model_of(16, 1)
    model.set_submodule(PATHS[0], Bias.of_width(64))
    shards = ShardWriter(tmp_path)
    # readers of an emptied sublayer are gone altogether
    model.get_submodule("model.layers.0").mlp = nn.ModuleDict({"down_proj": model.get_submodule(PATHS[0])})
    repaired_weights.add(model, [*PATHS, "model.layers.0.mlp.gate_proj"], shards)
    shards.close()
    saved = read(tmp_path, [path.name for path in tmp_path.iterdir()])[repaired_weights.GROUP]
    assert list(saved) == [f"values:{PATHS[1]}"]
