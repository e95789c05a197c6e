"""The causal language-model loss, scaled so that it does not depend on how the global batch is split."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_ds.data.base import IGNORED, Batch
from apt_ds.profiling import timed


@timed("forward")
def summed_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy summed over the trained tokens of a micro-batch, fp32 scalar, unit nat.

    Logits are made only at positions some row is trained on. Padding sits on the right, where causal attention
    never looks back from a real token, so no attention mask is passed; where rows hold several examples, positions
    that restart keep them apart. Labels are best left on the host: on a device, looking them up makes the host wait.
    """
    place = {"device": batch.input_ids.device, "non_blocking": True}
    targets = batch.labels[:, 1:]
    trained = targets != IGNORED
    positions = trained.any(dim=0).nonzero().squeeze(1)
    chosen = trained[:, positions].flatten().nonzero().squeeze(1)
    inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
    logits = model(**inputs, logits_to_keep=positions.to(**place), use_cache=False).logits
    logits = logits.flatten(0, 1).index_select(0, chosen.to(**place))
    return F.cross_entropy(logits.float(), targets[trained].to(**place), reduction="sum")


def trained_tokens(labels: list[int]) -> int:
    """How many tokens of a row enter the loss."""
    return sum(label != IGNORED for label in labels[1:])


@torch.no_grad()
def token_losses(model: nn.Module, input_ids: Tensor) -> Tensor:
    """Cross-entropy summed over all tokens but the first of each row, fp32 scalar, unit nat. input_ids: [B, L]"""
    logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1]
    # row by row: fp32 logits of a whole batch may be larger than the model
    rows = zip(logits, input_ids[:, 1:], strict=True)
    return torch.stack([F.cross_entropy(row.float(), ids, reduction="sum") for row, ids in rows]).sum()
