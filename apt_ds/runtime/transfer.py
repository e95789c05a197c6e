"""Copies from the host to a device that wait for nothing.

A copy is queued only if its source is pinned. From other memory the host waits until the copy is done.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the host on `device`. A tensor that is there already is returned as it is."""
    if torch.device(device).type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
