"""Sublayers that lose all their blocks under --allow_empty_layers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.models import adapter
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import HIDDEN, Anatomy, block_slices, kept_sizes
from apt_ds.pruning.budget_search import cuttable, search
from apt_ds.pruning.limits import Rules
from apt_ds.pruning.masks import Masks
from apt_ds.pruning.rank_growth import RankGrowth
from apt_ds.pruning.rules import rules_of
from apt_ds.pruning.surgery import Plan, apply_plan
from apt_ds.runtime.zero import EngineState
from tests.pruning.test_masks import random_keep
from tests.support import tiny

KINDS = ["mha", "gqa", "bert-classes", "roberta-answers"]
EMPTY = RunConfig(structure="adaptive", allow_empty_layers=True)


def model_of(kind: str) -> tuple[torch.nn.Module, Anatomy]:
    """A model with adapters, far from their start."""
    llama = kind in tiny.KINDS
    # a bias must outlive its sublayer
    model = tiny.model(kind, attention_bias=kind == "gqa") if llama else tiny.small(kind)
    anatomy = anatomy_of(model.config, tiny.TASKS[kind])
    targets = tuple(name for name in ("q", "v", "o", "up", "down") if name in anatomy.targets)
    adapter.attach(model, anatomy, targets, rank=3, seed=1)
    for _, module in adapter.adapters(model):
        module.lora_B.data.normal_(0, 0.1)
    return model, anatomy


def keep_without(anatomy: Anatomy, sites: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random blocks remain, none at `sites`."""
    keep = random_keep(anatomy, seed)
    where = dict(block_slices(anatomy.sizes))
    for site in sites:
        keep[where[site]] = False
    return keep


@pytest.mark.parametrize("kind", KINDS)
def test_masked_equals_cut_where_sublayers_are_empty(kind: str) -> None:
    model, anatomy = model_of(kind)
    keep = keep_without(anatomy, (0, 3))
    masked, cut = copy.deepcopy(model), copy.deepcopy(model)
    masks = Masks(anatomy)
    masks.install(masked)
    masks.set(keep.astype(float))
    smaller = apply_plan(cut, anatomy, Plan(keep=keep), None, torch.Generator())
    assert torch.allclose(tiny.answer(masked), tiny.answer(cut), atol=1e-5)
    assert smaller.sizes.counts[0] == smaller.sizes.counts[3] == 0
    # a parameter without elements stops ZeRO-3
    assert all(parameter.numel() for parameter in cut.parameters())
    for slot in smaller.slots:
        cut.get_submodule(slot.path)
    counted = sum(p.numel() for n, p in cut.named_parameters() if p.dim() == 2 and "layer" in n and "lora" not in n)
    assert smaller.num_parameters(smaller.sizes) == counted


def test_an_emptied_model_can_be_cut_again() -> None:
    model, anatomy = model_of("gqa")
    first = keep_without(anatomy, (0, 3))
    where = dict(block_slices(anatomy.sizes))
    first[where[HIDDEN]] = True
    once = apply_plan(model, anatomy, Plan(keep=first), None, torch.Generator())
    second = random_keep(once, 3)
    masked = copy.deepcopy(model)
    masks = Masks(once)
    masks.install(masked)
    masks.set(second.astype(float))
    twice = apply_plan(model, once, Plan(keep=second), None, torch.Generator())
    assert torch.allclose(tiny.answer(masked), tiny.answer(model), atol=1e-5)
    assert twice.sizes.counts[0] == 0 and twice.sizes.hidden < once.sizes.hidden


def test_state_of_an_emptied_sublayer_is_dropped() -> None:
    model, anatomy = model_of("gqa")
    state = EngineState(
        {name: {"exp_avg": torch.ones(p.shape)} for name, p in model.named_parameters() if p.requires_grad}, 1.0
    )
    growth = RankGrowth(EMPTY.adapter, 0.85, 10, 2)
    growth.begin(model)
    paths = [path for path, _ in adapter.adapters(model)]
    growth.update(torch.arange(len(paths), dtype=torch.float32))
    before = dict(zip(paths, growth.importance.tolist(), strict=True))
    apply_plan(model, anatomy, Plan(keep=keep_without(anatomy, (2,))), state, torch.Generator())
    trainable = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    assert {name: entry["exp_avg"].shape for name, entry in state.tensors.items()} == trainable
    growth.begin(model)
    after = [path for path, _ in adapter.adapters(model)]
    assert 0 < len(after) < len(paths)
    assert growth.importance.tolist() == [before[path] for path in after]


def test_generation_with_a_cache_follows_an_emptied_first_layer() -> None:
    model, anatomy = model_of("gqa")
    apply_plan(model, anatomy, Plan(keep=keep_without(anatomy, (0,))), None, torch.Generator())
    tokens = tiny.ids(2)
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    options = {"attention_mask": mask, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(
        model.generate(tokens, use_cache=True, **options), model.generate(tokens, use_cache=False, **options)
    )


def test_search_empties_sublayers_only_if_allowed() -> None:
    anatomy = anatomy_of(tiny.config())
    scores = np.ones(anatomy.sizes.total())
    where = dict(block_slices(anatomy.sizes))
    for site in (0, 1):
        scores[where[site]] = 1e-6
    budget = 0.5 * anatomy.num_parameters(anatomy.sizes)
    kept = {}
    for empty in (False, True):
        rules = Rules(("heads", "neurons"), "adaptive", 4, empty=empty)
        keep = search(scores, anatomy, rules, budget)
        kept[empty] = [int(keep[where[site]].sum()) for site in (0, 1)]
        assert cuttable(~keep, scores, anatomy, rules).tolist() == keep.tolist()
        assert anatomy.num_parameters(kept_sizes(anatomy.sizes, keep)) <= budget
    assert kept == {False: [1, 4], True: [0, 0]}


def test_a_kind_never_disappears_from_all_layers() -> None:
    anatomy = anatomy_of(tiny.config())
    scores = np.zeros(anatomy.sizes.total())
    where = dict(block_slices(anatomy.sizes))
    scores[where[3]] = 1.0
    keep = search(scores, anatomy, Rules(("heads", "neurons"), "adaptive", 4, empty=True), 3000.0)
    assert [int(keep[where[site]].sum()) for site in range(4)] == [1, 0, 0, 12]
    budget = 2 * 3.0 * 48 * 32  # the neurons of both layers
    with pytest.raises(UserError, match=r"leaves no heads in any layer: lower --sparsity"):
        search(np.ones(anatomy.sizes.total()), anatomy, Rules(("heads",), "adaptive", empty=True), budget)


def test_families_without_emptied_sublayers_refuse() -> None:
    anatomy = anatomy_of(tiny.small("t5").config, tiny.TASKS["t5"])
    with pytest.raises(UserError, match="--allow_empty_layers is not supported for this architecture"):
        rules_of(EMPTY, anatomy)
    assert rules_of(EMPTY, anatomy_of(tiny.config())).empty


def test_uniform_layers_cannot_be_empty() -> None:
    with pytest.raises(UserError, match="--allow_empty_layers requires --structure adaptive"):
        RunConfig(
            allow_empty_layers=True,
            structure="uniform",
            model_name_or_path="m",
            data_path="d",
            output_dir="o",
            deepspeed="ds_configs/zero2.json",
        ).check()
