"""Quantized weights that are cut and grown, and what is written of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from apt_ds.models import adapter, loading, quantization
from apt_ds.models.blocks import Anatomy, block_slices
from apt_ds.models.export import write
from apt_ds.pruning.masks import Masks
from apt_ds.pruning.surgery import Plan, apply_plan, element_index
from apt_ds.runtime.packed import QuantizedParameter
from tests.support import tiny
from tests.support.tiny_quantized import ERROR, SIZES, Loaded, first_blocks_go, projections, relative

each_width = pytest.mark.parametrize("bits", [4, 8])


def scattered(anatomy: Anatomy) -> np.ndarray:
    """Half of the neurons here and there, and one head group of each layer, go."""
    keep, draw = np.ones(anatomy.sizes.total(), dtype=bool), np.random.default_rng(0)
    for site, span in block_slices(anatomy.sizes):
        if anatomy.kind(site) == "neuron":
            keep[span] = draw.permutation(span.stop - span.start) % 2 == 0
        if anatomy.kind(site) == "head":
            keep[span.start] = False
    return keep


@pytest.mark.parametrize(("bits", "bound"), [(4, 0.25), (8, 0.02)])
def test_masked_equals_cut_within_quantization(bits: int, bound: float, load: Callable[..., Loaded]) -> None:
    masked, anatomy = load(bits)
    cut, _ = load(bits)
    keep = scattered(anatomy)
    masks = Masks(anatomy)
    masks.install(masked)
    masks.set(keep.astype(float))
    smaller = apply_plan(cut, anatomy, Plan(keep=keep), None, torch.Generator())
    expected = masked(tiny.ids()).logits
    assert relative(cut(tiny.ids()).logits, expected) < bound
    # it is quantizing anew that makes the difference, and nothing else
    masks.remove()
    plain, _ = load(bits)
    for path, module in projections(plain, anatomy).items():
        weight = nn.Parameter(quantization.dense(module.weight), requires_grad=False)
        plain.get_submodule(path).weight = weight
    apply_plan(plain, anatomy, Plan(keep=keep), None, torch.Generator())
    assert relative(plain(tiny.ids()).logits, expected) < 1e-5
    counted = sum(m.weight.full.numel() for m in projections(cut, smaller).values())
    assert smaller.num_parameters(smaller.sizes) == counted


def test_masked_equals_cut_where_whole_blocks_go(load: Callable[..., Loaded]) -> None:
    masked, anatomy = load(4)
    cut, _ = load(4)
    keep = first_blocks_go(anatomy)
    masks = Masks(anatomy)
    masks.install(masked)
    masks.set(keep.astype(float))
    apply_plan(cut, anatomy, Plan(keep=keep), None, torch.Generator())
    # their codes stay: only the scales are rounded again
    assert relative(cut(tiny.ids()).logits, masked(tiny.ids()).logits) < 0.02
    assert 0 < quantization.summary(cut)["requantization_error_max"] < 0.01


@pytest.mark.parametrize(("bits", "ratio"), [(4, 1.5), (8, 1.5)])
def test_a_cut_costs_little_more_than_quantizing_what_was_cut(
    bits: int, ratio: float, load: Callable[..., Loaded]
) -> None:
    model, anatomy = load(bits, adapted=False)
    plain, _ = load(16, adapted=False)
    keep = scattered(anatomy)
    slots = {slot.path: slot for slot in anatomy.slots}
    apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
    apply_plan(plain, anatomy, Plan(keep=keep), None, torch.Generator())
    for path, module in projections(model, anatomy).items():
        original = plain.get_submodule(path).weight
        sliced_first = relative(quantization.dense(quantization.pack(original, bits, torch.float32)), original)
        error = relative(quantization.dense(module.weight), original)
        assert error < ratio * sliced_first, path
        columns = element_index(slots[path].columns, keep, anatomy)
        if bits == 4 and columns is None:
            # whole rows: the codes are the same ones
            assert error < 1.02 * sliced_first, path
        assert module.weight.requantization_error < ratio * sliced_first
        assert (module.out_features, module.in_features) == tuple(original.shape)
    assert set(quantization.summary(model)) == {"requantization_error_mean", "requantization_error_max"}
    assert quantization.summary(plain) == {}


@each_width
def test_growth_leaves_outputs_bit_for_bit(bits: int, load: Callable[..., Loaded]) -> None:
    model, anatomy = load(bits)
    path, grown = next(adapter.adapters(model))
    with torch.no_grad():
        # whole numbers: sums are exact in any order, so that only a change of the function can show
        grown.lora_A.copy_((grown.lora_A * 30).round())
        grown.lora_B.copy_((grown.lora_B * 30).round())
    base = quantization.dense(grown.weight)
    x = torch.randint(-9, 9, (5, 128)).float()
    before = grown(x)
    apply_plan(model, anatomy, Plan(grow={path: 8}), None, torch.Generator().manual_seed(0))
    grown.lora_A.data[3:] = (grown.lora_A.data[3:] * 30).round()
    assert grown.lora_A.shape[0] == 8 and torch.equal(grown(x), before)
    assert torch.equal(quantization.dense(grown.weight), base)


@each_width
@pytest.mark.parametrize("kept", [False, True], ids=["to 16", "kept"])
def test_what_is_written(bits: int, kept: bool, load: Callable[..., Loaded], tmp_path: Path) -> None:
    model, anatomy = load(bits)
    base = tiny.config(**SIZES)
    smaller = apply_plan(model, anatomy, Plan(keep=scattered(anatomy)), None, torch.Generator())
    width = bits if kept else 16
    write.export(model, smaller, base, None, tiny.tokenizer(), tmp_path / "model", bits=width)
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf8"))
    assert ("quantization_config" in config) == kept
    loaded, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    size = sum(t.numel() * t.element_size() for t in load_file(tmp_path / "model" / "model.safetensors").values())
    counted = loading.count_parameters(model, width)["checkpoint_bytes"]
    # tables that are the same for every weight, and what names its shape
    assert counted <= size < counted + 14 * 2048 * kept + 1
    logits = model(tiny.ids()).logits
    if not kept:
        assert relative(loaded(tiny.ids()).logits, logits) < 1e-5
        return
    quantization.convert_bnb_layers(loaded, torch.float32)
    for path, module in projections(loaded, smaller).items():
        own = model.get_submodule(path)
        if isinstance(own, adapter.AptLinear):
            assert relative(quantization.dense(module.weight), own.merged()) < ERROR[bits]
        else:
            assert torch.equal(quantization.dense(module.weight), quantization.dense(own.weight))
    assert relative(loaded(tiny.ids()).logits, logits) < 3 * ERROR[bits]
    # as its users run it: bitsandbytes' int8 product rounds activations too
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    with torch.no_grad():
        assert relative(plain(tiny.ids()).logits, logits) < {4: 0.4, 8: 0.1}[bits]


@each_width
def test_what_is_not_quantized_is_written_in_the_dtype_that_is_named(
    bits: int, load: Callable[..., Loaded], tmp_path: Path
) -> None:
    model, anatomy = load(bits)
    half = torch.bfloat16
    for width in (bits, 16):
        folder = tmp_path / str(width)
        write.export(model, anatomy, tiny.config(**SIZES), None, tiny.tokenizer(), folder, bits=width, dtype=half)
        config = json.loads((folder / "config.json").read_text(encoding="utf8"))
        assert config["dtype"] == "bfloat16"
        tensors = load_file(folder / "model.safetensors")
        names = {name for name, _ in model.named_parameters() if "lora_" not in name}
        kinds = {name: value.dtype for name, value in tensors.items() if name in names}
        whole = {name for name in names if width == 16 or not isinstance(model.get_parameter(name), QuantizedParameter)}
        assert {kinds[name] for name in whole} == {half} and len(kinds) == len(names)
        size = sum(value.nbytes for value in tensors.values())
        counted = loading.count_parameters(model, width, half)["checkpoint_bytes"]
        assert counted <= size < counted + 14 * 2048 * (width < 16) + 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / str(bits), attn_implementation="eager").eval()
    assert loaded.dtype == half
    quantization.convert_bnb_layers(loaded, half)
    with torch.no_grad():
        assert relative(loaded(tiny.ids()).logits.float(), model(tiny.ids()).logits) < 3 * ERROR[bits] + 2**-6
