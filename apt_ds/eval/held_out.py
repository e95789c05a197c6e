"""Mean loss and perplexity over all ranks, of an engine (sharded weights) or of a plain model.

Sums stay on the device until the end, so that the host waits once for an evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from apt_ds.data.batching import collate
from apt_ds.data.rows import Rows
from apt_ds.losses.task_losses import TASK_LOSSES, token_losses
from apt_ds.runtime import collectives


def rank_batches(count: int, per_device: int) -> list[list[int]]:
    """This rank's batches of the indices of `count` items. Every rank gets the same number of batches.

    A rank without items left gets an empty batch. It must run a forward pass nevertheless, because sharded weights
    need every rank.
    """
    stride = per_device * collectives.world_size()
    offset = collectives.rank() * per_device
    return [list(range(start + offset, min(start + offset + per_device, count))) for start in range(0, count, stride)]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Inside the context the model is in eval mode. The mode is restored afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def held_out_loss(
    model: nn.Module, data: Rows, task_type: str, per_device: int, pad_id: int, device: torch.device
) -> float:
    """Mean loss of `data`. Collective.

    Args:
        model: A model or an engine.
        data: The evaluation set.
        task_type: A key of `TASK_LOSSES`. Its `loss_denominator` says what the mean counts.
        per_device: Examples of a rank's batch.
        pad_id: The token id of padding.
        device: The model's device.
    """
    task_loss = TASK_LOSSES[task_type]
    total, denominator = torch.zeros((), dtype=torch.float64, device=device), 0
    with evaluation_mode(model):
        for indices in rank_batches(len(data), per_device):
            rows = [data[i] for i in indices or [0]]
            batch = collate(rows, pad_id)
            # labels stay on the CPU, where the loss looks up which tokens count
            loss = task_loss.summed_loss(model, replace(batch.to(device), labels=batch.labels))
            if indices:
                total += loss
                denominator += sum(task_loss.loss_denominator(row) for row in rows)
    sums = torch.stack([total, torch.full_like(total, denominator)]).float()
    loss_sum, predictions = collectives.all_reduce_sum(sums).tolist()
    return loss_sum / predictions


@torch.no_grad()
def perplexity(model: nn.Module, blocks: Tensor, per_device: int, device: torch.device) -> float:
    """Exp of the mean cross-entropy per predicted token. Collective.

    Args:
        model: A causal language model or an engine.
        blocks: int64 [n, length] on the CPU. The first token of a block is not predicted.
        per_device: Blocks of a rank's batch.
        device: The model's device.
    """
    total = torch.zeros((), dtype=torch.float64, device=device)
    with evaluation_mode(model):
        for indices in rank_batches(len(blocks), per_device):
            loss = token_losses(model, blocks[indices or [0]], device)
            if indices:
                total += loss
    total = collectives.all_reduce_sum(total.float())
    # beyond this loss a float cannot hold the perplexity of a model that diverged
    return math.exp(min(float(total) / (len(blocks) * (blocks.shape[1] - 1)), 80.0))
