"""Cuts of 3-D weights, and of the optimizer state that follows them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import block_slices
from apt_ds.pruning.expert_cuts import ExpertCut, expert_cuts
from apt_ds.pruning.surgery import Plan, apply_plan, weight_cuts
from apt_ds.runtime import zero
from tests.support import tiny_experts


def test_each_expert_keeps_its_own_entries() -> None:
    experts, neurons, hidden = torch.tensor([0, 2]), torch.tensor([[1, 2], [0, 3]]), torch.tensor([0, 4])
    gate_up, down = torch.randn(3, 8, 5), torch.randn(3, 5, 4)
    cut = ExpertCut("m", "gate_up_proj", experts, neurons, hidden).part_of(gate_up)
    assert torch.equal(cut[0], gate_up[0][[1, 2, 5, 6]][:, [0, 4]])
    assert torch.equal(cut[1], gate_up[2][[0, 3, 4, 7]][:, [0, 4]])
    cut = ExpertCut("m", "down_proj", experts, neurons, None).part_of(down)
    assert torch.equal(cut, torch.stack([down[0][:, [1, 2]], down[2][:, [0, 3]]])) and cut.is_contiguous()


def test_a_cut_names_the_weights_of_mixtures_that_lose_something() -> None:
    model = tiny_experts.model("qwen3_moe")
    anatomy = anatomy_of(model.config)
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    assert not list(expert_cuts(anatomy, keep))
    span = dict(block_slices(anatomy.sizes))[5]
    keep[span] = np.tile(np.arange(24) < 16, 5)
    cuts = list(expert_cuts(anatomy, keep))
    assert [(cut.path, cut.name) for cut in cuts] == [
        ("model.layers.1.mlp.experts", "gate_up_proj"),
        ("model.layers.1.mlp.experts", "down_proj"),
    ]
    assert [cut.name for cut in weight_cuts(model, anatomy, keep)] == ["gate_up_proj", "down_proj"]


def test_experts_of_different_widths_are_refused() -> None:
    anatomy = anatomy_of(tiny_experts.model("mixtral").config)
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    keep[dict(block_slices(anatomy.sizes))[2].start] = False
    with pytest.raises(AssertionError, match="same number of neurons"):
        list(expert_cuts(anatomy, keep))


def test_moments_follow_the_index_of_their_weights() -> None:
    model, anatomy = tiny_experts.dressed("mixtral")
    name = f"{anatomy.experts[0].path}.down_proj"
    before = dict(model.named_parameters())[name].detach().clone()
    state = zero.EngineState({name: {"exp_avg": before * 2, "master": before.clone()}}, 0.0)
    apply_plan(model, anatomy, Plan(keep=tiny_experts.keep_of(anatomy, "adaptive")), state, torch.Generator())
    after = dict(model.named_parameters())[name]
    assert after.shape == (4, 16, 16)
    assert torch.equal(state.tensors[name]["exp_avg"], after * 2) and torch.equal(state.tensors[name]["master"], after)
    module, router = (model.get_submodule(path) for path in (anatomy.experts[0].path, anatomy.experts[0].router))
    assert (module.num_experts, module.hidden_dim, module.intermediate_dim) == (4, 16, 16)
    assert (router.num_experts, router.hidden_dim, router.top_k) == (4, 16, 2)
