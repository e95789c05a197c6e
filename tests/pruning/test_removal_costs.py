"""Costs of removing blocks after the rest is refitted, against least squares by brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from apt_ds.pruning.removal_costs import block_costs, elimination, removal_costs, ridged

TOKENS, INPUTS, OUTPUTS = 200, 12, 5


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs that can partly replace each other, a weight, and weights of its outputs' errors."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, 6, generator=generator) @ torch.randn(6, INPUTS, generator=generator)
    x += 0.3 * torch.randn(TOKENS, INPUTS, generator=generator)
    return x.double(), torch.randn(OUTPUTS, INPUTS, generator=generator).double(), torch.arange(1.0, 6.0).double()


def refitted_error(x: Tensor, weight: Tensor, error_weights: Tensor, removed: list[int]) -> float:
    """Weighted squared error without some inputs, the rest refitted to the output. The ridge is rows of x."""
    x = torch.cat([x, torch.diag((0.1 * x.square().sum(0)).sqrt())])
    kept = [number for number in range(INPUTS) if number not in removed]
    target = x @ weight.T
    fit = torch.linalg.lstsq(x[:, kept], target).solution if kept else torch.zeros(0, OUTPUTS, dtype=x.dtype)
    return float(((target - x[:, kept] @ fit).square() * error_weights).sum())


def columns(blocks: list[int], unit: int) -> list[int]:
    return [block * unit + entry for block in blocks for entry in range(unit)]


@pytest.mark.parametrize("unit", [1, 3])
def test_the_cost_of_a_block_is_the_error_of_the_refitted_rest(unit: int) -> None:
    x, weight, error_weights = drawn()
    inverse = torch.linalg.inv(ridged(x.T @ x))
    costs = block_costs(weight * error_weights.sqrt()[:, None], inverse, unit)
    expected = [refitted_error(x, weight, error_weights, columns([block], unit)) for block in range(INPUTS // unit)]
    assert np.allclose(costs.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("unit", "at_once"), [(1, 1), (1, 4), (3, 1), (3, 2)])
def test_increments_add_up_to_the_error_of_joint_removal(unit: int, at_once: int) -> None:
    x, weight, error_weights = drawn()
    order, increments = elimination(weight * error_weights.sqrt()[:, None], ridged(x.T @ x), unit, at_once)
    assert sorted(order) == list(range(INPUTS // unit))
    for count in range(at_once, len(order) + 1, at_once):
        expected = refitted_error(x, weight, error_weights, columns(order[:count], unit))
        assert sum(increments[:count]) == pytest.approx(expected, rel=1e-6)


def test_each_removal_is_the_cheapest_that_is_left() -> None:
    x, weight, error_weights = drawn()
    order, _ = elimination(weight * error_weights.sqrt()[:, None], ridged(x.T @ x), 1)
    for count in (0, 1, 5):
        rest = [block for block in range(INPUTS) if block not in order[:count]]
        errors = [refitted_error(x, weight, error_weights, [*order[:count], block]) for block in rest]
        assert rest[int(np.argmin(errors))] == order[count]


def test_only_one_of_two_equal_inputs_is_cheap() -> None:
    x = torch.randn(TOKENS, INPUTS, generator=torch.Generator().manual_seed(1)).double()
    x[:, 7] = x[:, 2]
    weight = drawn()[1]
    weight[:, 7] = weight[:, 2]
    alone = block_costs(weight, torch.linalg.inv(ridged(x.T @ x)), 1)
    assert sorted(alone.argsort()[:2].tolist()) == [2, 7]
    costs = removal_costs(weight, torch.ones(OUTPUTS), x.T @ x, 1)
    assert costs.argsort()[0] in (2, 7) and costs[[2, 7]].max() > 20 * costs[[2, 7]].min()


def test_scores_keep_the_order_of_elimination_and_follow_the_errors_weights() -> None:
    x, weight, error_weights = drawn()
    gram = x.T @ x
    costs = removal_costs(weight, error_weights, gram, 1)
    order, _ = elimination(weight * error_weights.sqrt()[:, None], ridged(gram), 1)
    assert costs.argsort().tolist() == order and len(set(costs)) == INPUTS
    assert np.allclose(removal_costs(weight, 9 * error_weights, 2 * gram, 1), 18 * costs, rtol=1e-6)
    # outputs whose errors do not matter have no say
    assert not removal_costs(weight, torch.zeros(OUTPUTS), gram, 1).any()


def test_scaling_an_input_changes_no_cost() -> None:
    """An input far larger than all others, such as a massive activation, leaves their costs as they are."""
    x, weight, error_weights = drawn()
    scale = torch.ones(INPUTS, dtype=x.dtype)
    scale[4] = 1000.0
    costs = removal_costs(weight, error_weights, x.T @ x, 1)
    scaled = x * scale
    assert np.allclose(removal_costs(weight / scale, error_weights, scaled.T @ scaled, 1), costs, rtol=1e-5)
    scaled[:, 4] = 0
    assert removal_costs(weight, error_weights, scaled.T @ scaled, 1)[4] < 1e-6 * costs.min()


def test_inputs_that_are_always_zero_cost_nothing_and_others_must_be_finite() -> None:
    _, weight, error_weights = drawn()
    assert not removal_costs(weight, error_weights, torch.zeros(INPUTS, INPUTS), 3).any()
    with pytest.raises(ArithmeticError, match="not finite"):
        removal_costs(weight, error_weights, torch.full((INPUTS, INPUTS), torch.inf), 1)
