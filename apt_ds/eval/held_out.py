"""Held-out loss and corpus perplexity of a model, over all ranks. Works on an engine (sharded) and on a plain model."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from apt_ds.config.errors import UserError
from apt_ds.data.batching import collate
from apt_ds.data.text import read_plain
from apt_ds.data.tokenized import TokenizedSet
from apt_ds.losses.task_losses import OBJECTIVES, token_losses
from apt_ds.runtime import collectives


def shares(count: int, per_device: int) -> list[list[int]]:
    """This rank's batches of indices into `count` items: the same number on every rank.

    A rank that has run out gets an empty batch and must run a forward pass all the same, as sharded weights need
    every rank.
    """
    stride = per_device * collectives.world_size()
    first = collectives.rank() * per_device
    return [
        [i for i in range(start + first, start + first + per_device) if i < count] for start in range(0, count, stride)
    ]


@torch.no_grad()
def held_out_loss(
    model: nn.Module, data: TokenizedSet, kind: str, per_device: int, pad_id: int, device: torch.device
) -> float:
    """Mean loss of `data`, per whatever a kind of task counts: of a language model per trained token. Collective."""
    objective = OBJECTIVES[kind]
    model.eval()
    total = torch.zeros(2, dtype=torch.float64)
    for share in shares(len(data), per_device):
        rows = [data[i] for i in share or [0]]
        batch = collate(rows, pad_id).to(device)
        loss = objective.summed_loss(model, batch)
        if share:
            total += torch.tensor([loss.item(), sum(objective.weight(row) for row in rows)])
    model.train()
    total = collectives.all_reduce_sum(total.to(device, torch.float32)).double()
    return float(total[0] / total[1])


def text_blocks(path: str, tokenizer: PreTrainedTokenizerBase, length: int, limit: int = 0) -> torch.Tensor:
    """A text file as blocks of token ids [n, length]; no special token is added, the rest is dropped.

    limit: at most so many blocks, spread evenly over the file (0: all).

    Raises:
        UserError: the file cannot be read or holds less than one block.
    """
    text = read_plain(Path(path), "--perplexity_path")
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False)["input_ids"][0]
    if len(ids) < length:
        raise UserError(f"--perplexity_path {path!r} holds {len(ids)} tokens, fewer than one block of {length}")
    blocks = ids[: len(ids) // length * length].view(-1, length)
    return blocks if not limit else blocks[torch.linspace(0, len(blocks) - 1, min(limit, len(blocks))).long()]


@torch.no_grad()
def perplexity(model: nn.Module, blocks: torch.Tensor, per_device: int, device: torch.device) -> float:
    """Exp of the mean cross-entropy per predicted token (all but the first of a block). Collective."""
    training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    for share in shares(len(blocks), per_device):
        loss = token_losses(model, blocks[share or [0]], device)
        if share:
            total += loss.item()
    model.train(training)
    total = collectives.all_reduce_sum(total.to(device, torch.float32)).double()
    return math.exp(float(total) / (len(blocks) * (blocks.shape[1] - 1)))
