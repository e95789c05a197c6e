"""Liger's fused linear cross-entropy under a frozen LM head, on a GPU where the library is installed.

It computes what `cross_entropy.of_hidden` computes, in fewer passes over the logits of a chunk. Like that function it
makes the gradient of the hidden states in the forward pass and no gradient of the head. Its price is a look at the
number of targets, for which the host waits.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from apt_ds.data.tokenized import IGNORED
from apt_ds.losses import cross_entropy
from apt_ds.models.logit_transform import IDENTITY, LogitTransform

# fp16 needs a scaled loss, and the gradient is made before the loss is scaled
DTYPES = (torch.bfloat16, torch.float32)


def usable(device: torch.device, dtype: torch.dtype, installed: bool) -> bool:
    """Whether Liger computes the loss of a frozen head without bias as correctly as `cross_entropy`.

    Args:
        device: the device of the hidden states.
        dtype: their dtype, which is that of the head.
        installed: whether Liger and Triton can be imported.
    """
    return installed and device.type == "cuda" and dtype in DTYPES


@cache
def installed() -> bool:
    """Whether Liger and Triton can be imported."""
    return all(importlib.util.find_spec(name) is not None for name in ("liger_kernel", "triton"))


def of_hidden(hidden: Tensor, weight: Tensor, targets: Tensor, transform: LogitTransform = IDENTITY) -> Tensor:
    """`cross_entropy.of_hidden`, by Liger where it is usable. Arguments and result are the same.

    Liger gets the output of the head as it is. Families with a transform after the head keep our own loss.
    """
    if not len(hidden) or not transform.is_identity or not usable(hidden.device, hidden.dtype, installed()):
        return cross_entropy.of_hidden(hidden, weight, targets, transform)
    return fused(hidden, weight, targets)


def fused(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """`cross_entropy.of_hidden` by Liger. Arguments and result are the same."""
    functional = importlib.import_module("liger_kernel.transformers.functional")
    return functional.liger_fused_linear_cross_entropy(
        hidden, weight, padded(targets, len(hidden)), ignore_index=IGNORED, reduction="sum"
    )


def padded(targets: Tensor, rows: int) -> Tensor:
    """A target for every row: int64 [n] to [rows]. Rows without a target get `IGNORED`."""
    return F.pad(targets, (0, rows - len(targets)), value=IGNORED)
