"""What a family does to its logits after the LM head, and its derivative."""

from __future__ import annotations

import pytest
import torch

from apt_ds.models.logit_transform import IDENTITY, LogitTransform

TRANSFORMS = [IDENTITY, LogitTransform(scale=0.25), LogitTransform(cap=30.0), LogitTransform(2.0, 5.0)]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_derivative_is_that_of_the_transform(transform: LogitTransform) -> None:
    outputs = torch.linspace(-60, 60, 101, dtype=torch.float64, requires_grad=True)
    logits = transform.apply(outputs)
    (theirs,) = torch.autograd.grad(logits.sum(), outputs)
    torch.testing.assert_close(torch.ones_like(theirs) * transform.derivative(logits.detach()), theirs)


def test_the_identity_changes_nothing_and_a_cap_bounds() -> None:
    outputs = torch.tensor([-90.0, 0.0, 90.0])
    assert IDENTITY.is_identity and IDENTITY.apply(outputs) is outputs
    assert not LogitTransform(cap=30.0).is_identity and not LogitTransform(scale=0.5).is_identity
    assert LogitTransform(cap=30.0).apply(outputs).abs().max() <= 30
