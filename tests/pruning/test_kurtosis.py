"""The kurtosis term of blocks, from weights (METHOD.md section 3)."""

from __future__ import annotations

import pytest
import torch

from apt_ds.models.adapter import AptLinear
from apt_ds.pruning.kurtosis import (
    consumer_outliers,
    effective_weight,
    excess_kurtosis,
    outlier_term,
    power_sums,
    reader_outliers,
)


def test_kurtosis_is_that_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "apt_ds.pruning.kurtosis.CHUNK_ELEMENTS", 3 * 7
    )  # the rows in many pieces, the last one smaller
    weight = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)) ** 3
    w = weight.double()
    z = (w - w.mean(0)) / w.std(0, unbiased=False)
    expected = (z**4).mean(0) - 3
    assert torch.allclose(excess_kurtosis(power_sums(weight), 400).double(), expected, rtol=1e-5)
    assert torch.allclose(reader_outliers(weight).double(), expected.clamp(min=0).sqrt(), rtol=1e-5)


def test_outliers_of_a_head_pool_its_own_pairs() -> None:
    weight = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    mass = torch.rand(8, generator=torch.Generator().manual_seed(2)) + 0.5
    outliers = consumer_outliers(weight, 4, mass)
    for head in range(2):
        pairs = (weight * mass)[:, 4 * head : 4 * head + 4].flatten().double()
        z = (pairs - pairs.mean()) / pairs.std(unbiased=False)
        assert outliers[head] == pytest.approx(max(float((z**4).mean() - 3), 0.0) ** 0.5, rel=1e-4)
    # a neuron's own scale cancels
    one = torch.ones(8)
    assert torch.allclose(consumer_outliers(weight, 1, one), consumer_outliers(weight * 7, 1, one), rtol=1e-4)


def test_light_tails_add_nothing() -> None:
    assert outlier_term(torch.tensor([-1.2, 0.0, 9.0])).tolist() == [0.0, 0.0, 3.0]


def test_the_weight_contains_its_adapter() -> None:
    base = torch.nn.Linear(4, 3, bias=False)
    with effective_weight(base) as weight:
        assert torch.equal(weight, base.weight)
    layer = AptLinear(base, torch.ones(2, 4), torch.ones(3, 2))
    with effective_weight(layer) as weight:
        # s = 2, and the product of the two is 2 everywhere
        assert torch.allclose(weight, base.weight + 4.0)
