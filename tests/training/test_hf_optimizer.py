"""Moments follow their weights while the optimizer stays the same object."""

from __future__ import annotations

import copy

import pytest
import torch

from apt_ds.config.errors import UserError
from apt_ds.models import adapter
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import Anatomy
from apt_ds.pruning.surgery import Plan, apply_plan
from apt_ds.training import hf_optimizer
from tests.pruning.test_masks import random_keep
from tests.support import tiny


def trained() -> tuple[torch.nn.Module, Anatomy, torch.optim.AdamW]:
    """A model after two steps of AdamW in two groups."""
    model = tiny.model()
    anatomy = anatomy_of(model.config)
    adapter.attach(model, anatomy, ("q", "v", "down"), 3, 0)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [{"params": [p for n, p in named if part in n], "lr": rate} for part, rate in (("_A", 0.1), ("_B", 0.2))]
    optimizer = torch.optim.AdamW(groups)
    for seed in range(2):
        model(input_ids=tiny.ids(seed=seed), labels=tiny.ids(seed=seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, anatomy, optimizer


@pytest.mark.parametrize("carry", [True, False])
def test_a_cut_and_a_growth_take_the_moments_along(carry: bool) -> None:
    model, anatomy, optimizer = trained()
    before = {name: copy.deepcopy(optimizer.state[p]) for name, p in model.named_parameters() if p in optimizer.state}
    path = "model.layers.1.self_attn.q_proj"
    keep = random_keep(anatomy, 1)
    state = hf_optimizer.take(optimizer, model)
    apply_plan(model, anatomy, Plan(keep=keep, grow={path: 5}), state.for_surgery(), torch.Generator())
    hf_optimizer.put(optimizer, model, state, carry)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]
    parameters = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert parameters == {id(p) for p in model.parameters() if p.requires_grad}
    if not carry:
        assert not optimizer.state
    for name, parameter in model.named_parameters() if carry else ():
        if parameter.requires_grad:
            entry = optimizer.state[parameter]
            assert entry["exp_avg"].shape == parameter.shape and entry["step"] == before[name]["step"] == 2
    # neurons are the last blocks before the hidden dimensions: columns of W_A of the down projection
    neurons = keep[-32 - 48 : -32]
    hidden = torch.from_numpy(keep[-32:])
    layer = model.get_submodule("model.layers.1.mlp.down_proj")
    if carry:
        moment = optimizer.state[layer.lora_A]["exp_avg"]
        expected = before["model.layers.1.mlp.down_proj.lora_A"]["exp_avg"][:, torch.from_numpy(neurons)]
        assert torch.equal(moment, expected) and moment.any()
        grown = optimizer.state[model.get_submodule(path).lora_A]["exp_avg_sq"]
        assert torch.equal(grown[:3], before[f"{path}.lora_A"]["exp_avg_sq"][:, hidden]) and not grown[3:].any()
    optimizer.zero_grad()
    model(input_ids=tiny.ids(), labels=tiny.ids()).loss.backward()
    weight = layer.lora_B.detach().clone()
    optimizer.step()
    assert not torch.equal(layer.lora_B, weight)


def test_optimizers_that_cannot_follow_are_refused_in_one_line() -> None:
    model, anatomy, optimizer = trained()
    hf_optimizer.check(optimizer, model)
    adapter.attach(model, anatomy, ("o",), 2, 0)
    model.get_submodule("model.layers.0.self_attn.q_proj").requires_grad_(True)
    with pytest.raises(UserError, match="the optimizer does not train the adapters"):
        hf_optimizer.check(optimizer, model)
    weights = [p for p in model.parameters() if p.requires_grad]
    factored = torch.optim.Adafactor(weights)
    model(input_ids=tiny.ids(), labels=tiny.ids()).loss.backward()
    factored.step()
    with pytest.raises(UserError, match=r"Adafactor keeps .* in another form than the weight's"):
        hf_optimizer.check(factored, model)
