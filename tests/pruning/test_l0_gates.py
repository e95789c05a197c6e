"""Learned gates: expected size, one update, the Lagrangian, state, and the decision of a run."""

from __future__ import annotations

import copy
import itertools
from typing import cast

import numpy as np
import pytest
import torch

from apt_ds.config import schedules
from apt_ds.config.run_config import RunConfig
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import Anatomy, Sizes, Sublayer, block_slices, kept_sizes
from apt_ds.pruning import hard_concrete
from apt_ds.pruning.l0_gates import L0Gates
from apt_ds.pruning.pruner import Pruner
from apt_ds.pruning.surgery import apply_plan
from apt_ds.runtime import notices, zero
from tests.support import tiny

CPU = torch.device("cpu")
KINDS = ("heads", "neurons", "hidden")
LEARNED = {"pruning": "gradual", "score": "l0", "sparsity": 0.4, "align": 4, "rank_growth": "none"}


def table() -> Anatomy:
    """Two heads, two neurons and two hidden dimensions."""
    sites = (Sublayer("head", "o", 4, 16), Sublayer("neuron", "down", 1, 3))
    return Anatomy(sites, (), (), (), (), "eps", {}, (), Sizes((2, 2), 2))


def gates(anatomy: Anatomy, kinds: tuple[str, ...] = KINDS, coarse: bool = False) -> L0Gates:
    scorer = L0Gates(anatomy, CPU, kinds, coarse, seed=3)
    values = np.random.default_rng(1).normal(0.0, 1.5, len(scorer.log_alpha))
    scorer.log_alpha.data.copy_(torch.from_numpy(values))
    return scorer


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("kinds", [KINDS, ("heads", "neurons"), ("hidden",)])
def test_the_expected_size_is_that_of_all_open_and_closed_gates(kinds: tuple[str, ...], coarse: bool) -> None:
    anatomy = table()
    scorer = gates(anatomy, kinds, coarse)
    open_ = hard_concrete.probability(scorer.log_alpha.detach())
    blocks, expected = anatomy.sizes.total(), 0.0
    for state in itertools.product([False, True], repeat=len(open_)):
        chance = float(torch.where(torch.tensor(state), open_, 1 - open_).prod())
        keep = np.array([s or not g for s, g in zip(state[:blocks], scorer.gated, strict=True)])
        for number, site in enumerate(scorer.coarse):
            if not state[blocks + number]:
                keep[dict(block_slices(anatomy.sizes))[site]] = False
        expected += chance * anatomy.num_parameters(kept_sizes(anatomy.sizes, keep))
    whole = anatomy.num_parameters(anatomy.sizes)
    assert float(scorer.expected_removed().detach()) == pytest.approx(1 - expected / whole, abs=1e-12)


def objective(scorer: L0Gates, gradient: torch.Tensor, log_alpha: torch.Tensor, multipliers: torch.Tensor) -> float:
    """What one update descends and ascends on, for gates of these values."""
    other = copy.deepcopy(scorer)
    other.log_alpha = log_alpha
    gap = float(other.expected_removed()) - scorer.target
    return float(gradient @ torch.from_numpy(other.draw(5, scorer.target, 0.1, 0.1))) + float(
        multipliers[0] * gap + multipliers[1] * gap**2
    )


def test_an_update_follows_the_gradients_of_loss_and_lagrangian() -> None:
    scorer = gates(table(), coarse=True)
    scorer.draw(5, 0.3, 0.1, 0.1)
    scorer.multipliers.data.copy_(torch.tensor([-1.5, 2.0]))
    gradient = torch.arange(6.0) / 5 - 0.4
    scorer.abs_sums = 8 * gradient
    alpha, multipliers = scorer.log_alpha.detach().clone(), scorer.multipliers.detach().clone()
    expected = []
    for place in range(len(alpha)):
        step = torch.zeros_like(alpha)
        step[place] = 1e-5
        ends = [objective(scorer, gradient.double(), alpha + sign * step, multipliers) for sign in (1, -1)]
        expected.append((ends[0] - ends[1]) / 2e-5)
    gap = float(scorer.expected_removed().detach()) - 0.3
    scorer.update(1 / 8)
    assert scorer.log_alpha.grad is not None and scorer.multipliers.grad is not None
    assert np.allclose(scorer.log_alpha.grad, expected, rtol=1e-4, atol=1e-7)
    assert np.allclose(scorer.multipliers.grad, [gap, gap**2])
    # Adam's first step has the size of its learning rate: gates descend, multipliers ascend
    assert np.allclose(scorer.log_alpha.detach() - alpha, -0.1 * np.sign(expected), atol=1e-4)
    assert np.allclose(scorer.multipliers.detach() - multipliers, 0.1 * np.sign([gap, gap**2]), atol=1e-4)


def test_step_and_seed_decide_the_noise() -> None:
    scorer, again = gates(table()), gates(table())
    first = scorer.draw(1, 0.0, 0.1, 0.1)
    assert not np.array_equal(first, scorer.draw(2, 0.0, 0.1, 0.1))
    assert np.array_equal(first, again.draw(1, 0.0, 0.1, 0.1))
    assert ((first >= 0) & (first <= 1)).all()


def test_only_kinds_that_may_go_have_a_gate() -> None:
    scorer = L0Gates(anatomy_of(tiny.config()), CPU, ("neurons",), False, 0)
    scorer.log_alpha.data.fill_(-1.0)
    for values in (scorer.gates(), scorer.draw(0, 0.0, 0.1, 0.1)):
        assert (values[~scorer.gated.numpy()] == 1.0).all() and (values[scorer.gated.numpy()] < 1.0).any()
    assert scorer.gated.sum() == 2 * 48


def learn(scorer: L0Gates, phase: int, sparsity: float, steps: range) -> None:
    """Updates of a phase in which every gate lowers the loss a little, half of the heads and neurons more."""
    useful = torch.from_numpy(np.arange(len(scorer.gated)) % 2 == 0)
    for step in steps:
        rates = schedules.gate_rate(0.0, phase), schedules.multiplier_rate(phase)
        scorer.draw(step, schedules.gate_target(step, phase, sparsity), *rates, schedules.gate_betas(phase))
        noise = torch.from_numpy(np.random.default_rng([9, step]).normal(0, 1e-3, len(useful)))
        scorer.abs_sums = torch.where(useful, noise - 0.1, noise - 1e-4).float()
        scorer.update(1.0)


def test_the_lagrangian_reaches_its_target_and_keeps_what_the_loss_needs() -> None:
    anatomy = anatomy_of(tiny.config())
    scorer = L0Gates(anatomy, CPU, ("heads", "neurons"), False, 0)
    assert float(scorer.expected_removed().detach()) < 0.01
    assert "expect to remove 0.2 %" in scorer.notice(0.4) and "--gate_learning_rate" in scorer.notice(0.4)
    learn(scorer, 400, 0.4, range(400))
    assert float(scorer.expected_removed().detach()) == pytest.approx(0.4, abs=0.02)
    assert scorer.notice(0.4) == ""
    density = scorer.scores() / anatomy.params_per_block(anatomy.sizes)
    gated, useful = scorer.gated.numpy(), np.arange(len(density)) % 2 == 0
    assert density[gated & useful].min() > 0.9 and density[gated & ~useful].min() < 0.1


@pytest.mark.parametrize(("phase", "sparsity"), [(30, 0.3), (60, 0.5), (150, 0.6), (435, 0.6)])
def test_a_short_phase_does_not_go_past_its_target(phase: int, sparsity: float) -> None:
    scorer = L0Gates(anatomy_of(tiny.config()), CPU, ("heads", "neurons"), False, 0)
    learn(scorer, phase, sparsity, range(phase))
    assert float(scorer.expected_removed().detach()) == pytest.approx(sparsity, abs=0.02)


def test_a_restored_state_goes_on_bit_for_bit() -> None:
    anatomy = anatomy_of(tiny.config())
    straight, stopped = (L0Gates(anatomy, CPU, KINDS, True, 0) for _ in range(2))
    learn(straight, 12, 0.4, range(12))
    learn(stopped, 12, 0.4, range(5))
    restored = L0Gates(anatomy, CPU, KINDS, True, 0)
    restored.load_state_dict(np.arange(anatomy.sizes.total()), *stopped.state_dict())
    learn(stopped, 12, 0.4, range(5, 9))  # a state is a copy
    learn(restored, 12, 0.4, range(5, 12))
    assert torch.equal(restored.log_alpha, straight.log_alpha) and restored.updates == straight.updates == 12
    assert torch.equal(restored.multipliers, straight.multipliers)
    first, second = restored.state_dict()[1], straight.state_dict()[1]
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("empty", [False, True])
def test_the_decision_is_the_best_gates_under_the_budget_and_masked_equals_cut(
    empty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model()
    anatomy = anatomy_of(model.config)
    flags = LEARNED | {"prune_blocks": "heads,neurons,hidden", "structure": "adaptive", "allow_empty_layers": empty}
    pruner = Pruner(RunConfig(**flags), anatomy, 20, CPU)
    gates_ = pruner.scorer
    assert isinstance(gates_, L0Gates) and len(gates_.coarse) == (4 if empty else 0)
    warnings: list[str] = []
    monkeypatch.setattr(notices, "warn", warnings.append)
    monkeypatch.setattr(gates_, "notice", "{} is missed".format)
    pruner.install_hooks(model, scoring=False)
    for step in range(pruner.phase):
        assert pruner.needs_scores(step)
        pruner.begin_step(step)
        model(tiny.ids()).logits.logsumexp(-1).sum().backward()
        gradients = pruner.masks.gradients(CPU)
        # gates need no engine
        sums, importances = pruner.observations(cast(zero.Engine, None), scoring=True, importance=False)
        assert gradients.any() and torch.equal(sums, gradients) and not importances.numel()
        gates_.update(1.0)
        pruner.advance(step + 1)
        assert np.array_equal(pruner.masks.values, gates_.gates())
        plan = pruner.plan(step + 1, 20, model)
        assert bool(plan) == (step + 1 == pruner.phase)
    assert warnings == ["0.4 is missed"]
    assert plan.keep is not None and np.array_equal(pruner.masks.values, plan.keep)
    assert np.array_equal(plan.keep, pruner.decide(pruner.scores(), 0.4))
    masked = model(tiny.ids()).logits
    pruner.remove_hooks()
    smaller = apply_plan(model, anatomy, plan, None, torch.Generator())
    assert smaller.num_parameters(smaller.sizes) <= pruner.budget(0.4)
    assert torch.allclose(model(tiny.ids()).logits, masked, atol=1e-5)
    pruner.follow(plan, smaller, pruner.phase)
    assert pruner.pruning_finished and not pruner.needs_scores(pruner.phase)
