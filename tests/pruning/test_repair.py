"""Repair before a cut: layer by layer, over inputs that the repaired layers below give (METHOD.md section 12)."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from apt_ds.models import quantization
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import HIDDEN, Anatomy, block_slices
from apt_ds.pruning.layer_walk import WalkBatch
from apt_ds.pruning.masks import Masks
from apt_ds.pruning.repair import repair, repairable
from apt_ds.pruning.surgery import Plan, apply_plan
from apt_ds.runtime.zero import EngineState
from tests.pruning.test_layer_walk import SMALL, prepared
from tests.pruning.test_layer_walk import batches as family_batches
from tests.pruning.test_masks import random_keep, with_adapters
from tests.support import tiny, tiny_families

FAMILIES = sorted(tiny_families.FAMILIES)


def batches(count: int = 6) -> list[WalkBatch]:
    return family_batches(anatomy_of(tiny.config("gqa")), count)


def without_hidden(anatomy: Anatomy, keep: np.ndarray) -> np.ndarray:
    keep = keep.copy()
    keep[dict(block_slices(anatomy.sizes))[HIDDEN]] = True
    return keep


@pytest.mark.parametrize("hidden", [False, True])
def test_a_repaired_model_under_masks_equals_the_cut_one(hidden: bool) -> None:
    model, anatomy = with_adapters("gqa")
    keep = random_keep(anatomy, 0)
    keep = keep if hidden else without_hidden(anatomy, keep)
    before = copy.deepcopy(model)
    sites = repair(model, anatomy, keep, batches())
    repaired = [site.path for site in sites]
    consumers = [anatomy.sites[n].consumer for n in repairable(anatomy, keep)]
    assert [path for path in repaired if path in consumers] == consumers
    assert {*repaired} == {*consumers, *(anatomy.readers if hidden else ())} and len({*repaired}) == len(repaired)
    assert any(site.error_repaired < site.error_cut for site in sites)
    masks, cut = Masks(anatomy), copy.deepcopy(model)
    masks.install(model)
    masks.set(keep.astype(float))
    apply_plan(cut, anatomy, Plan(keep=keep), None, torch.Generator())
    assert torch.allclose(model(tiny.ids()).logits, cut(tiny.ids()).logits, atol=1e-5)
    changed = {n for n, p in before.named_parameters() if not torch.equal(p, dict(model.named_parameters())[n])}
    assert changed == {f"{site.path}.weight" for site in sites if site.ridge < float("inf")}


def test_no_site_gets_worse_and_the_stream_comes_nearer_to_the_dense_one() -> None:
    model, anatomy = with_adapters("gqa")
    keep = without_hidden(anatomy, random_keep(anatomy, 1))
    dense, plain = copy.deepcopy(model), copy.deepcopy(model)
    sites = repair(model, anatomy, keep, batches(24))
    assert all(site.error_repaired <= site.error_cut for site in sites)
    for each in (model, plain):
        apply_plan(each, anatomy, Plan(keep=keep), None, torch.Generator())
    ids = tiny.ids(16, 16, seed=100)
    target, repaired_stream, cut_stream = (each.model(ids).last_hidden_state for each in (dense, model, plain))
    assert (repaired_stream - target).norm() < 0.9 * (cut_stream - target).norm()


@pytest.mark.parametrize("kind", [*SMALL, *FAMILIES])
def test_every_family_can_be_repaired(kind: str) -> None:
    model, anatomy = prepared(kind)
    keep = without_hidden(anatomy, random_keep(anatomy, 3))
    sites = repair(model, anatomy, keep, family_batches(anatomy, 4))
    assert len(sites) == len(list(repairable(anatomy, keep))) == len(anatomy.sites)
    assert all(site.error_repaired <= site.error_cut + 1e-6 for site in sites)
    assert any(site.error_repaired < 0.95 * site.error_cut for site in sites)
    cut = copy.deepcopy(model)
    masks = Masks(anatomy)
    masks.install(model)
    masks.set(keep.astype(float))
    apply_plan(cut, anatomy, Plan(keep=keep), None, torch.Generator())
    assert torch.allclose(tiny.answer(model), tiny.answer(cut), atol=3e-5)


def test_masters_follow_their_weights() -> None:
    model, anatomy = with_adapters("gqa")
    keep = without_hidden(anatomy, random_keep(anatomy, 0))
    path = anatomy.sites[1].consumer
    name = f"{path}.weight"
    master = dict(model.named_parameters())[name].detach().clone()
    state = EngineState({name: {"master": master}}, adam_step=1.0)
    repair(model, anatomy, keep, batches(12), state)
    assert torch.equal(state.tensors[name]["master"], dict(model.named_parameters())[name])


def test_a_weight_of_4_bits_is_repaired_between_two_quantizations() -> None:
    pytest.importorskip("bitsandbytes")
    model = tiny.model("gqa", hidden_size=64, intermediate_size=128)
    anatomy = anatomy_of(model.config)
    paths = [site.consumer for site in anatomy.sites]
    quantization.hold(model, paths, 4, torch.float32)
    keep = without_hidden(anatomy, random_keep(anatomy, 0))
    before = {path: quantization.dense(model.get_submodule(path).weight).clone() for path in paths}
    sites = repair(model, anatomy, keep, batches(12))
    moved = [site.path for site in sites if site.ridge < float("inf")]
    assert moved
    for path in moved:
        weight = model.get_submodule(path).weight
        assert weight.bits == 4 and weight.requantization_error > 0
        assert not torch.equal(quantization.dense(weight), before[path])


def test_a_model_keeps_its_mode_and_loses_all_hooks() -> None:
    model, anatomy = with_adapters("gqa")
    model.train()
    repair(model, anatomy, without_hidden(anatomy, random_keep(anatomy, 0)), batches(2))
    assert model.training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())
