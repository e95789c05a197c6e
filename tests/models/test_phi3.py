"""Phi-3: joined weights are split as they are read, and joined again as they are written."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Phi3ForCausalLM

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models import adapter
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.architectures.phi3 import ARCHITECTURE, writable_sizes
from apt_ds.models.blocks import block_slices
from apt_ds.models.export import write
from apt_ds.models.export.modeling_apt_phi3 import SplitPhi3ForCausalLM
from apt_ds.models.weights import read_weights
from apt_ds.models.writable_sizes import EVERY_SIZE
from apt_ds.pruning.surgery import Plan, apply_plan
from tests.support import tiny, tiny_families
from tests.support.published import published_config

READER = ARCHITECTURE.training_classes[LANGUAGE_MODEL]
LARGE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}


def stock_folder(row: str, folder: Path, **changes: object) -> Phi3ForCausalLM:
    """A stock model with large weights, also written to `folder`."""
    model = Phi3ForCausalLM(tiny_families.config(row, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.dim() == 1 else parameter.normal_(0, 0.15)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("row", ["phi3", "phi4"])
def test_the_trained_model_is_the_stock_model_with_split_weights(row: str, tmp_path: Path) -> None:
    stock = stock_folder(row, tmp_path / "stock")
    model, missing = read_weights(str(tmp_path / "stock"), torch.float32, "sdpa", model_class=READER)
    assert type(model) is SplitPhi3ForCausalLM and not missing
    torch.testing.assert_close(model.eval()(tiny.ids()).logits, stock(tiny.ids()).logits)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert type(again) is Phi3ForCausalLM
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in stock.state_dict().items())


def test_a_joined_weight_of_another_shape_is_named_in_one_line(tmp_path: Path) -> None:
    stock_folder("phi3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}), encoding="utf8")
    with pytest.raises(UserError, match="its weights have other shapes than its config"):
        read_weights(str(tmp_path), torch.float32, "sdpa", model_class=READER)


def test_joined_weights_of_a_cut_model_are_stacked_in_the_order_of_the_stock_model(tmp_path: Path) -> None:
    stock_folder("phi4", tmp_path / "stock")
    model, _ = read_weights(str(tmp_path / "stock"), torch.float32, "sdpa", model_class=READER)
    anatomy, base = anatomy_of(model.config), copy.deepcopy(model.config)
    adapter.attach(model, anatomy, ("q", "gate"), 3, 0)
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    for site, span in block_slices(anatomy.sizes):
        if anatomy.kind(site) == "neuron":
            keep[span.start : span.start + 8] = False
    smaller = apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
    write.export(model, smaller, base, None, tiny.tokenizer(), tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert not any(name.endswith((".q_proj.weight", ".gate_proj.weight", ".up_proj.weight")) for name in weights)
    attention, mlp = model.model.layers[1].self_attn, model.model.layers[1].mlp
    rows = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    assert torch.equal(weights["model.layers.1.self_attn.qkv_proj.weight"], rows)
    rows = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
    assert torch.equal(weights["model.layers.1.mlp.gate_up_proj.weight"], rows) and rows.shape == (80, 64)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_base_is_written_quantized_with_joined_weights(bits: int, tmp_path: Path) -> None:
    """Rows of int8 have scales of their own. Blocks of NF4 keep their codes; their scales are rounded again."""
    stock_folder("phi3", tmp_path / "stock", **LARGE)
    model, _ = read_weights(str(tmp_path / "stock"), torch.float32, "eager", bits=bits, model_class=READER)
    anatomy, base = anatomy_of(model.config), copy.deepcopy(model.config)
    write.export(model, anatomy, base, None, tiny.tokenizer(), tmp_path / "model", bits=bits)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    attention = model.model.layers[1].self_attn
    parts = [attention.get_submodule(f"{short}_proj").weight for short in "qkv"]
    name = "model.layers.1.self_attn.qkv_proj"
    if bits == 8:
        assert torch.equal(weights[f"{name}.weight"].flatten(), torch.cat([p.codes() for p in parts]).view(torch.int8))
        torch.testing.assert_close(weights[f"{name}.SCB"], torch.cat([p.scales for p in parts]))
        return
    assert torch.equal(weights[f"{name}.weight"].flatten(), torch.cat([p.codes() for p in parts]))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager")
    logits, expected = loaded(tiny.ids()).logits, model.eval()(tiny.ids()).logits
    assert (logits - expected).norm() / expected.norm() < 0.02


def test_only_long_positions_limit_the_sizes_that_can_be_written() -> None:
    assert writable_sizes(published_config("phi-3-mini-4k")) is EVERY_SIZE
    config = published_config("phi-4-mini")
    anatomy = anatomy_of(config)
    for groups, hidden, holds in ((8, 3072, True), (4, 3072, False), (4, 1536, True), (8, 2048, False)):
        counts = tuple(groups if site.kind == "head" else 4096 for site in anatomy.sites)
        smaller = anatomy.with_sizes(type(anatomy.sizes)(counts, hidden))
        assert writable_sizes(config).holds(smaller) == holds, (groups, hidden)
