"""Repair of what reads the stream where hidden dimensions are removed (METHOD.md section 12)."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from apt_ds.models.blocks import HIDDEN, Anatomy, block_slices
from apt_ds.pruning.activation_hooks import input_hook
from apt_ds.pruning.layer_walk import LayerWalk
from apt_ds.pruning.masks import Masks
from apt_ds.pruning.reader_repair import ReaderGroup, features_of, reader_problem, repair_order, repairs_readers
from apt_ds.pruning.repair import repair, repairs_anything
from apt_ds.pruning.surgery import Plan, apply_plan
from tests.pruning.test_layer_walk import SMALL, batches, prepared
from tests.pruning.test_masks import random_keep, with_adapters
from tests.support import tiny, tiny_experts, tiny_families

PRE_NORM = [*(kind for kind in tiny_families.FAMILIES if not kind.startswith("olmo2")), "t5", "t5-gated"]


def only_hidden(anatomy: Anatomy, fraction: float = 0.2) -> np.ndarray:
    """Removes some hidden dimensions and nothing else."""
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    span = dict(block_slices(anatomy.sizes))[HIDDEN]
    keep[span] = np.random.default_rng(0).random(span.stop - span.start) > fraction
    return keep


def test_families_whose_norms_are_in_the_way_are_known() -> None:
    for kind in [*SMALL, *tiny_families.FAMILIES]:
        _, anatomy = prepared(kind)
        assert repairs_readers(anatomy, only_hidden(anatomy)) == (kind in PRE_NORM), kind
        assert repairs_anything(anatomy, only_hidden(anatomy)) == (kind in PRE_NORM), kind
        assert not repairs_anything(anatomy, np.ones(anatomy.sizes.total(), dtype=bool))


@pytest.mark.parametrize("kind", PRE_NORM)
def test_masks_at_norms_compute_what_masks_of_writers_compute(kind: str) -> None:
    model, anatomy = prepared(kind)
    masks, answers = Masks(anatomy), []
    masks.set(random_keep(anatomy, 1).astype(float))
    for at_norms in (False, True):
        masks.install(model, at_norms)
        answers.append(tiny.answer(model))
        masks.remove()
    assert torch.allclose(*answers, atol=1e-5)
    assert not torch.allclose(answers[0], tiny.answer(model), atol=1e-2)


def test_masks_at_norms_reach_experts() -> None:
    model, anatomy = tiny_experts.dressed("mixtral")
    masks, answers = Masks(anatomy), []
    masks.set(only_hidden(anatomy).astype(float))
    for at_norms in (False, True):
        masks.install(model, at_norms)
        answers.append(tiny_experts.answer(model))
        masks.remove()
    assert torch.allclose(*answers, atol=1e-5)


@pytest.mark.parametrize("kind", ["gemma2", "qwen3", "t5"])
def test_repaired_readers_equal_those_of_the_cut_model(kind: str) -> None:
    model, anatomy = prepared(kind)
    keep = random_keep(anatomy, 3)
    sites = repair(model, anatomy, keep, batches(anatomy, 4))
    # what reads the encoder's output in a decoder keeps its weights
    crossing = [path for path in anatomy.readers if "EncDecAttention.k" in path or "EncDecAttention.v" in path]
    assert {*anatomy.readers} - {*crossing} <= {site.path for site in sites}
    assert all(site.error_repaired <= site.error_cut + 1e-6 for site in sites)
    cut, masks = copy.deepcopy(model), Masks(anatomy)
    masks.install(model)
    masks.set(keep.astype(float))
    apply_plan(cut, anatomy, Plan(keep=keep), None, torch.Generator())
    assert torch.allclose(tiny.answer(model), tiny.answer(cut), atol=5e-5)


def test_readers_of_a_sublayer_that_goes_whole_are_left() -> None:
    model, anatomy = with_adapters("gqa")
    keep, spans = only_hidden(anatomy), dict(block_slices(anatomy.sizes))
    keep[spans[0]] = keep[spans[3]] = False
    repaired = {site.path for site in repair(model, anatomy, keep, batches(anatomy, 1))}
    gone = ("model.layers.0.self_attn.", "model.layers.1.mlp.")
    assert repaired == {path for path in anatomy.readers if not path.startswith(gone)}


def test_a_layer_is_repaired_in_the_order_of_its_forward_pass() -> None:
    model, anatomy = with_adapters("gqa")
    with torch.no_grad():
        walk = LayerWalk(model, anatomy, batches(anatomy, 1))
        order = repair_order(walk, 0, anatomy, readers=True)
        assert repair_order(walk, 0, anatomy, readers=False) == [site.consumer for site in anatomy.sites[:2]]
    layer = "model.layers.0"
    heads = tuple(f"{layer}.self_attn.{short}_proj" for short in "qkv")
    assert order == [
        ReaderGroup(f"{layer}.input_layernorm", heads),
        f"{layer}.self_attn.o_proj",
        ReaderGroup(f"{layer}.post_attention_layernorm", (f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj")),
        f"{layer}.mlp.down_proj",
    ]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@torch.no_grad()
def test_errors_are_those_of_the_reader_on_both_sides_of_the_cut() -> None:
    """The first layer reads embeddings, which no repair has changed."""
    model, anatomy = with_adapters("gqa")
    keep, given = only_hidden(anatomy), batches(anatomy, 4)
    kept = torch.from_numpy(keep[dict(block_slices(anatomy.sizes))[HIDDEN]])
    path, norm = "model.layers.0.self_attn.k_proj", model.model.layers[0].input_layernorm
    stream: list[torch.Tensor] = []
    handle = norm.register_forward_pre_hook(input_hook(stream.append))
    for batch in given:
        batch.run(model.model)
    handle.remove()
    x = torch.cat([x.flatten(0, 1)[batch.tokens.counted] for x, batch in zip(stream, given, strict=True)])
    reader = model.get_submodule(path)
    old = reader.merged().clone()
    figures = next(site for site in repair(model, anatomy, keep, given) if site.path == path)
    new = reader.merged()
    before = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon) * norm.weight
    rest = x[:, kept]
    after = rest * torch.rsqrt(rest.square().mean(-1, keepdim=True) + norm.variance_epsilon) * norm.weight[kept]
    whole = before @ old.T
    for weight, figure in ((old, figures.error_cut), (new, figures.error_repaired)):
        error = (whole - after @ weight[:, kept].T).square().sum() / whole.square().sum()
        assert float(error) == pytest.approx(figure, rel=1e-3)
    assert figures.error_repaired < 0.98 * figures.error_cut
    assert torch.equal(new[:, ~kept], old[:, ~kept])


@torch.no_grad()
def test_features_and_weight_give_the_output_before_the_cut() -> None:
    model, anatomy = with_adapters("gqa")
    masks = Masks(anatomy)
    masks.set(only_hidden(anatomy).astype(float))
    masks.install(model, at_norms=True)
    kept = torch.from_numpy(only_hidden(anatomy)[dict(block_slices(anatomy.sizes))[HIDDEN]])
    norm, weight, x = model.model.norm, torch.randn(5, 32), torch.randn(7, 32)
    joined, remain = reader_problem(weight, kept)
    features = features_of(masks, norm, kept)(x)
    assert torch.allclose(features[:, remain] @ joined[:, remain].T, norm(x)[:, kept] @ weight[:, kept].T, atol=1e-5)
    masks.remove()
    assert torch.allclose(features @ joined.T, norm(x) @ weight.T, atol=1e-5)


@torch.no_grad()
def test_a_repaired_model_comes_nearer_to_the_dense_one() -> None:
    model, anatomy = with_adapters("gqa")
    dense, plain, keep = copy.deepcopy(model), copy.deepcopy(model), only_hidden(anatomy)
    repair(model, anatomy, keep, batches(anatomy, 24))
    for each in (model, plain):
        apply_plan(each, anatomy, Plan(keep=keep), None, torch.Generator())
    ids = tiny.ids(16, 16, seed=500)
    target, repaired, cut = (each(ids).logits for each in (dense, model, plain))
    assert (repaired - target).norm() < 0.95 * (cut - target).norm()
