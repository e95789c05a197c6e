"""Liger's loss under a frozen head: where it is used, and what every implementation gives."""

from __future__ import annotations

import pytest
import torch

from apt_ds.data.batching import collate
from apt_ds.data.tokenized import IGNORED
from apt_ds.losses import cross_entropy, liger
from apt_ds.losses.task_losses import summed_loss
from tests.support import tiny

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "dtype", "installed", "expected"),
    [
        (CUDA, torch.bfloat16, True, True),
        (CUDA, torch.float32, True, True),
        (CUDA, torch.float16, True, False),  # needs a scaled loss
        (CUDA, torch.float64, True, False),
        (CUDA, torch.bfloat16, False, False),
        (CPU, torch.bfloat16, True, False),
    ],
)
def test_liger_is_used_only_where_it_is_as_right(
    device: torch.device, dtype: torch.dtype, installed: bool, expected: bool
) -> None:
    assert liger.usable(device, dtype, installed) == expected


def test_rows_without_a_target_are_ignored() -> None:
    assert liger.padded(torch.tensor([3, 1]), 4).tolist() == [3, 1, IGNORED, IGNORED]
    assert liger.padded(torch.tensor([3, 1]), 2).tolist() == [3, 1]


def inputs(device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states [40, 64], a frozen head [300, 64], targets [33]."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 64, generator=generator).to(device, dtype) for n in (40, 300))
    return hidden.requires_grad_(), weight, torch.randint(300, (33,), generator=generator).to(device)


@pytest.mark.parametrize("rows", [0, 33])
def test_the_cpu_keeps_its_own_loss(rows: int) -> None:
    hidden, weight, targets = inputs(CPU, torch.float32)
    hidden, targets = hidden[: rows + (7 if rows else 0)], targets[:rows]
    own, expected = (module.of_hidden(hidden, weight, targets) for module in (liger, cross_entropy))
    assert torch.equal(own, expected)
    assert torch.equal(*(torch.autograd.grad(loss, hidden)[0] for loss in (own, expected)))


def test_a_frozen_head_gets_no_gradient() -> None:
    """The graph of the loss has no edge to the head, while every other weight is trained."""
    model = tiny.model().eval()
    head = model.get_output_embeddings()
    batch = collate([{"input_ids": [5, 6, 7, 8], "labels": [IGNORED, 6, 7, 8]}], 0)
    head.weight.requires_grad_(False)
    loss = summed_loss(model, batch)
    edges = [node for node, _ in loss.grad_fn.next_functions]
    assert len([node for node in edges if node is not None]) == 1  # the hidden states
    loss.backward()
    assert head.weight.grad is None
    assert all(p.grad is not None for name, p in model.named_parameters() if p.requires_grad and "lm_head" not in name)
    head.weight.requires_grad_(True)
    summed_loss(model, batch).backward()
    assert head.weight.grad is not None


@pytest.mark.gpu
@pytest.mark.skipif(not liger.installed(), reason="needs the extra [gpu]")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_liger_gives_the_same_loss_and_gradient(dtype: torch.dtype) -> None:
    hidden, weight, targets = inputs(CUDA, dtype)
    fused, expected = liger.of_hidden(hidden, weight, targets), cross_entropy.of_hidden(hidden, weight, targets)
    torch.testing.assert_close(fused, expected, rtol=1e-3, atol=1e-3)
    (gradient,), (own,) = (torch.autograd.grad(3 * loss, hidden) for loss in (fused, expected))
    tolerance = {"atol": 0.05, "rtol": 0.05} if dtype == torch.bfloat16 else {"atol": 1e-4, "rtol": 1e-3}
    torch.testing.assert_close(gradient, own, **tolerance)
    assert not gradient[len(targets) :].any()
