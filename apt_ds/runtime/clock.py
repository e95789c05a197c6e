"""A clock that counts the work of the device.

A host queues work on a GPU and goes on, so that its own clock stops too early.
"""

from __future__ import annotations

import time

import torch


def seconds_after(device: torch.device) -> float:
    """Seconds on a clock without a meaning of its own, after `device` has done all work that is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
