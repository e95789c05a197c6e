"""Growth, cuts, and what follows them, on plain models (sections 5 and 6)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apt_ds.models import adapter
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import block_slices
from apt_ds.pruning import surgery
from apt_ds.pruning.surgery import Plan, apply_plan, element_index, weight_cuts
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


@pytest.mark.parametrize("tied", [False, True])
def test_moments_of_trained_base_weights_follow_their_index(tied: bool) -> None:
    """The same where no adapter exists and every weight is trained. Tied embeddings have one entry."""
    model = tiny.model(tie_word_embeddings=tied)
    anatomy = anatomy_of(model.config)
    state = moments(model)
    before = {name: dict(entry) for name, entry in state.tensors.items()}
    assert ("lm_head.weight" in before) is not tied
    keep = random_keep(anatomy, 0)
    apply_plan(model, anatomy, Plan(keep=keep), state, torch.Generator())
    slots = {slot.path: slot for slot in anatomy.slots}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == before.keys()
    for name, parameter in model.named_parameters():
        slot = slots[name.rpartition(".")[0]]
        rows, columns = (element_index(axis, keep, anatomy) for axis in (slot.rows, slot.columns))
        for key, value in state.tensors[name].items():
            assert torch.equal(value, surgery.take(before[name][key], rows, columns)), (name, key)
        assert torch.equal(state.tensors[name]["master"], parameter)
        assert parameter.shape != before[name]["master"].shape


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
    adapters = dict(adapter.adapters(model))
    assert len(adapters) == 4
    deviation = torch.cat([a.lora_A.flatten() for a in adapters.values()]).std().item()
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


@pytest.mark.parametrize("kind", ["mha", "gqa"])
def test_the_jobs_of_a_cut_name_every_parameter_once_and_change_nothing(kind: str) -> None:
    model, anatomy = with_adapters(kind)
    keep = random_keep(anatomy, 0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    cuts = weight_cuts(model, anatomy, keep)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    names = [f"{cut.path}.{cut.name}" for cut in cuts]
    assert sorted(names) == sorted(before)  # heads, neurons and hidden dimensions all go
    expected = {name: cut.part_of(before[name]) for name, cut in zip(names, cuts, strict=True)}
    apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
    assert all(torch.equal(value, expected[name]) for name, value in model.named_parameters())


def test_only_modules_that_lose_blocks_have_jobs() -> None:
    model, anatomy = with_adapters("gqa")
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    assert weight_cuts(model, anatomy, keep) == []
    keep[dict(block_slices(anatomy.sizes))[1].start] = False
    cuts = weight_cuts(model, anatomy, keep)
    assert {cut.path.rpartition(".")[2] for cut in cuts} == {"gate_proj", "up_proj", "down_proj"}
    # a projection that reads the neurons has W_A cut, one that writes them W_B
    assert {(cut.path.rpartition(".")[2], cut.name) for cut in cuts if cut.name != "weight"} == {
        ("gate_proj", "lora_B"),
        ("up_proj", "lora_B"),
        ("down_proj", "lora_A"),
    }


def test_factors_scale_consumers_only() -> None:
    model, anatomy = with_adapters("gqa")
    keep = random_keep(anatomy, 1)
    cuts = weight_cuts(model, anatomy, keep, np.full(len(keep), 0.5))
    scaled = {cut.path for cut in cuts if cut.factor is not None}
    assert scaled == {site.consumer for site in anatomy.sites}
    assert {cut.name for cut in cuts if cut.factor is not None} == {"weight", "lora_A"}


def test_a_tied_weight_is_cut_once() -> None:
    model = tiny.model(tie_word_embeddings=True)
    anatomy = anatomy_of(model.config)
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    keep[-5:] = False
    tied = [cut for cut in weight_cuts(model, anatomy, keep) if cut.tied_to is not None]
    assert [(cut.path, cut.name, cut.tied_to) for cut in tied] == [
        ("lm_head", "weight", ("model.embed_tokens", "weight"))
    ]


def test_the_old_weight_is_free_before_the_next_one_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """At every requantization at most one parameter of the model has both an old and a new weight."""
    model, anatomy = with_adapters("gqa")
    old = list(model.parameters())
    total = sum(parameter.numel() for parameter in old)
    keep = random_keep(anatomy, 0)
    peak, make = 0, surgery.quantization.requantize_like

    def watched(parameter: torch.nn.Parameter, values: torch.Tensor) -> torch.nn.Parameter:
        nonlocal peak
        requantized = make(parameter, values)
        living = {id(p): p.numel() for p in (*old, *model.parameters(), requantized)}
        peak = max(peak, sum(living.values()))
        return requantized

    monkeypatch.setattr(surgery.quantization, "requantize_like", watched)
    apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
    assert peak <= total + max(parameter.numel() for parameter in model.parameters())
    assert all(parameter.numel() == 0 for parameter in old)
