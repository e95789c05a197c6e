"""Draw the same random numbers a second time: dropout in a forward pass that is repeated. Plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

RandomState = tuple[Tensor, ...]  # of torch's generators on the CPU and on the device


def random_state(device: torch.device) -> RandomState:
    """The states of the generators that dropout on `device` draws from."""
    own = (torch.get_rng_state(),)
    return (*own, torch.cuda.get_rng_state(device)) if device.type == "cuda" else own


@contextmanager
def replayed(state: RandomState, device: torch.device) -> Iterator[None]:
    """Inside, the generators draw what they drew from `state` on. Afterwards they go on as if nothing was drawn."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state[1], device)
        yield
