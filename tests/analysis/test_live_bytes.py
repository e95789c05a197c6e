"""The count of live bytes."""

from __future__ import annotations

import torch
from torch import nn

from apt_ds.analysis.live_bytes import LiveBytes, fake, peak_bytes


def test_what_is_alive_is_counted_once_and_forgotten() -> None:
    model = nn.Linear(8, 8, bias=False).requires_grad_(False)
    with LiveBytes(model) as live:
        x = torch.zeros(100, 8)
        view = x.view(-1)
        y = model(x)
        assert live.now == 2 * 3200
        del x, view
        assert live.now == 3200
        del y
    assert live.now == 0 and live.peak == 6400


def test_the_peak_counts_activations_and_frees_gradients() -> None:
    with fake():
        model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
        x = torch.zeros(100, 8)
        forward = peak_bytes(model, lambda: model(x).sum(), backward=False)
        both = peak_bytes(model, lambda: model(x).sum(), backward=True)
    # two activations of 3,200 bytes. Backward adds gradients of them, and never both weights' at a time
    assert 2 * 3200 <= forward < both < 5 * 3200
    assert all(parameter.grad is None for parameter in model.parameters())
