"""The fit of a cut layer (METHOD.md section 12)."""

from __future__ import annotations

import math

import pytest
import torch

from apt_ds.pruning.least_squares import fit, repaired


def drawn(tokens: int, seed: int = 0, inputs: int = 12, sources: int = 6) -> torch.Tensor:
    """Inputs that are mixtures of fewer sources, plus a little noise, [tokens, inputs]."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(sources, inputs, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(tokens, inputs, generator=generator)
    return torch.randn(tokens, sources, generator=generator) @ mixing + 0.1 * noise


def grams(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = x.chunk(2)
    return first.T @ first, second.T @ second


WEIGHT = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
KEEP = torch.arange(12) % 3 != 0


def test_the_fit_is_the_minimum_of_the_ridge_problem() -> None:
    x = drawn(400)
    kept, ridge = x[:, KEEP], 0.1
    weight = ridge * (kept.square().sum(0)).mean()
    change = torch.zeros(5, int(KEEP.sum()), requires_grad=True)
    missing = x[:, ~KEEP] @ WEIGHT[:, ~KEEP].T
    problem = (missing - kept @ change.T).square().sum() + weight * change.square().sum()
    solved = fit(WEIGHT, x.T @ x, KEEP, ridge)
    assert solved is not None
    at_solution = torch.autograd.functional.jacobian(
        lambda c: (missing - kept @ c.T).square().sum() + weight * c.square().sum(), solved
    )
    assert at_solution.abs().max() < 1e-3 * float(problem)


def test_new_tokens_see_a_smaller_error() -> None:
    result = repaired(WEIGHT, grams(drawn(400)), KEEP)
    assert result.change is not None and result.error_repaired < 0.2 * result.error_cut
    x = drawn(400, seed=7)
    whole, cut = x @ WEIGHT.T, x[:, KEEP] @ WEIGHT[:, KEEP].T
    better = x[:, KEEP] @ (WEIGHT[:, KEEP] + result.change).T
    assert (better - whole).square().sum() < 0.3 * (cut - whole).square().sum()


def test_errors_are_fractions_of_the_output() -> None:
    x = drawn(300)
    result = repaired(WEIGHT, grams(x), KEEP)
    whole = x @ WEIGHT.T
    cut = (x[:, KEEP] @ WEIGHT[:, KEEP].T - whole).square().sum() / whole.square().sum()
    assert result.change is not None
    after = x[:, KEEP] @ (WEIGHT[:, KEEP] + result.change).T - whole
    assert result.error_cut == pytest.approx(float(cut), rel=1e-3)
    assert result.error_repaired == pytest.approx(float(after.square().sum() / whole.square().sum()), rel=1e-2)


def test_inputs_that_tell_nothing_of_each_other_give_the_plain_cut() -> None:
    x = torch.randn(40, 12, generator=torch.Generator().manual_seed(3))
    result = repaired(WEIGHT, grams(x), KEEP, ridges=(0.001,))
    assert result.change is None and result.ridge == math.inf and result.error_cut == result.error_repaired


def test_fewer_tokens_lean_more_to_the_plain_cut() -> None:
    many, few = (repaired(WEIGHT, grams(drawn(tokens)), KEEP) for tokens in (2000, 12))
    assert many.ridge < few.ridge


def test_no_token_at_all_gives_the_plain_cut() -> None:
    nothing = torch.zeros(12, 12)
    result = repaired(WEIGHT, (nothing, nothing), KEEP)
    assert result.change is None and result.error_cut == 0.0


def test_a_higher_ridge_changes_less() -> None:
    gram = drawn(200).T @ drawn(200)
    sizes = [
        float(torch.linalg.norm(change)) for r in (0.01, 1.0, 1e6) if (change := fit(WEIGHT, gram, KEEP, r)) is not None
    ]
    assert sizes[0] > sizes[1] > sizes[2] and sizes[2] < 1e-3
