"""Several examples in one row, so that little of a batch is padding.

`position_ids` restart at every example: transformers makes block-diagonal causal attention of them, under sdpa and
eager by a dense mask. Variable-length kernels take `starts` instead (`models/packed_attention.py`). No example sees
another, and every token of an example is where it would be alone. So loss, gradients and salience are those of a batch
with a row per example.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from apt_ds.data.batching import Batch, round_up
from apt_ds.data.tokenized import IGNORED, Row


def pack(rows: Sequence[Row], pad_id: int, limit: int, single: bool = False) -> Batch:
    """The examples `rows` in as few and as short rows as `grouped` finds, int64 tensors [B, L].

    limit: tokens a row may hold, at least those of the longest example; single: one row, however long it gets.
    Padding counts as an example of its own, with attention mask 0. The first token of an example has no label, as
    nothing before it predicts it.
    """
    groups = sharing([len(row["input_ids"]) for row in rows], limit, single)
    longest = max(sum(len(rows[i]["input_ids"]) for i in group) for group in groups)
    shape = (len(groups), round_up(longest))
    input_ids = torch.full(shape, pad_id, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    position_ids = torch.zeros(shape, dtype=torch.int64)
    for row, group in enumerate(groups):
        start = 0
        for i in group:
            end = start + len(rows[i]["input_ids"])
            input_ids[row, start:end] = torch.tensor(rows[i]["input_ids"])
            labels[row, start + 1 : end] = torch.tensor(rows[i]["labels"][1:])
            attention_mask[row, start:end] = 1
            position_ids[row, start:end] = torch.arange(end - start)
            start = end
        position_ids[row, start:] = torch.arange(shape[1] - start)
    begins = (position_ids.flatten() == 0).nonzero().squeeze(1)
    starts = torch.cat([begins, begins.new_tensor([position_ids.numel()])]).to(torch.int32)
    return Batch(
        input_ids,
        attention_mask,
        labels,
        position_ids=position_ids,
        starts=starts,
        longest=int(starts.diff().max()),
        padded=not bool(attention_mask.all()),
        packed=len(begins) > len(groups),
    )


def sharing(lengths: Sequence[int], limit: int, single: bool = False) -> list[list[int]]:
    """Which examples share a row: see `pack`."""
    return [list(range(len(lengths)))] if single else grouped(lengths, limit)


def grouped(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Which examples share a row: the smallest tensor (rows x longest row), the most rows among equals.

    For each number of rows the longest example goes to the shortest row, in turn; more and shorter rows are better
    for attention, whose cost grows with the square of the length. Every index once, deterministic.
    """
    assert max(lengths) <= limit
    best: list[list[int]] = []
    smallest = math.inf
    for count in range(len(lengths), 0, -1):
        groups = _levelled(lengths, count)
        longest = max(sum(lengths[i] for i in group) for group in groups)
        size = count * round_up(longest)
        if longest <= limit and size < smallest:
            best, smallest = groups, size
    return best


def _levelled(lengths: Sequence[int], count: int) -> list[list[int]]:
    groups: list[list[int]] = [[] for _ in range(count)]
    filled = [0] * count
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        shortest = filled.index(min(filled))
        groups[shortest].append(i)
        filled[shortest] += lengths[i]
    return groups
