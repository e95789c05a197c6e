"""Growth, cuts, and what follows them, on plain models (sections 5 and 6)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apt_ds.models import adapter
from apt_ds.models.architectures import anatomy_of
from apt_ds.pruning.surgery import Plan, apply_plan, element_index
from apt_ds.runtime.zero import EngineState
from tests.pruning.test_masks import random_keep, with_adapters
from tests.support import tiny


def moments(model: torch.nn.Module) -> EngineState:
    """Moments that name their own position."""
    tensors = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            numbers = torch.arange(parameter.numel(), dtype=torch.float32).view(parameter.shape) + 1
            tensors[name] = {"master": parameter.detach().clone(), "exp_avg": numbers, "exp_avg_sq": numbers**2}
    return EngineState(tensors, adam_step=3.0)


def test_growth_leaves_outputs_bit_for_bit() -> None:
    model, anatomy = with_adapters("gqa")
    paths = [path for path, _ in adapter.adapters(model)]
    old = model.get_submodule(paths[0])
    with torch.no_grad():
        # whole numbers: sums are exact in any order, so that only a change of the function can show
        for parameter in old.parameters():
            parameter.copy_((parameter * 30).round())
    x = torch.randint(-9, 9, (5, 32), generator=torch.Generator().manual_seed(0)).float()
    before = old(x)
    state = moments(model)
    apply_plan(model, anatomy, Plan(grow={paths[0]: 8, paths[5]: 4}), state, torch.Generator().manual_seed(0))
    grown = model.get_submodule(paths[0])
    assert grown.lora_A.shape[0] == grown.lora_B.shape[1] == 8
    assert model.get_submodule(paths[1]).lora_A.shape[0] == 3
    drawn = grown.lora_A[3:].detach().clone()
    assert (grown.lora_B[:, 3:] == 0).all() and drawn.std() > 0.5 / (3 * 32) ** 0.5
    grown.lora_A.data[3:] = (drawn * 30).round()
    assert torch.equal(grown(x), before)
    for key in ("exp_avg", "exp_avg_sq"):
        assert (state.tensors[f"{paths[0]}.lora_A"][key][3:] == 0).all()
        assert (state.tensors[f"{paths[0]}.lora_B"][key][:, :3] > 0).all()


def test_growth_is_the_same_on_every_rank_and_follows_its_seed() -> None:
    drawn = []
    for seed in (5, 5, 6):
        model, anatomy = with_adapters("gqa")
        path = next(path for path, _ in adapter.adapters(model))
        apply_plan(model, anatomy, Plan(grow={path: 8}), None, torch.Generator().manual_seed(seed))
        drawn.append(model.get_submodule(path).lora_A.detach())
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("kind", ["mha", "gqa"])
def test_moments_follow_their_index(kind: str) -> None:
    model, anatomy = with_adapters(kind)
    state = moments(model)
    before = {name: dict(entry) for name, entry in state.tensors.items()}
    keep = random_keep(anatomy, 0)
    apply_plan(model, anatomy, Plan(keep=keep), state, torch.Generator())
    slots = {slot.path: slot for slot in anatomy.slots}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        path, _, part = name.rpartition(".")
        dim, axis = (1, slots[path].columns) if part == "lora_A" else (0, slots[path].rows)
        index = element_index(axis, keep, anatomy)
        for key, value in state.tensors[name].items():
            assert torch.equal(value, before[name][key].index_select(dim, index))
        assert torch.equal(state.tensors[name]["master"], parameter)


def test_merged_equals_unmerged() -> None:
    model, _ = with_adapters("gqa")
    expected = model(tiny.ids()).logits
    with torch.no_grad():
        for _, module in adapter.adapters(model):
            module.weight.copy_(module.merged())
            module.lora_B.zero_()
    assert torch.allclose(model(tiny.ids()).logits, expected, atol=1e-5)


def test_adapters_start_as_the_method_says_and_change_nothing() -> None:
    model = tiny.model(hidden_size=512, intermediate_size=64, num_attention_heads=8, num_key_value_heads=8)
    before = model(tiny.ids()).logits
    adapter.attach(model, anatomy_of(model.config), ("q", "v"), 8, 0)
    assert torch.equal(model(tiny.ids()).logits, before)
    found = dict(adapter.adapters(model))
    assert len(found) == 4
    deviation = torch.cat([a.lora_A.flatten() for a in found.values()]).std().item()
    assert deviation == pytest.approx(1 / (3 * 512) ** 0.5, rel=0.03)
    trained = {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"lora_A", "lora_B"}


def test_tied_embeddings_stay_tied() -> None:
    model = tiny.model(tie_word_embeddings=True)
    anatomy = anatomy_of(model.config)
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    keep[-5:] = False
    apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.shape[1] == model.lm_head.in_features == 27
    assert model(tiny.ids()).logits.isfinite().all()
