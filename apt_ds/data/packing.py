"""Several examples in one row, so that little of a batch is padding.

`position_ids` restart at every example: transformers makes block-diagonal causal attention of them, under sdpa and
eager by a dense mask. Variable-length kernels take `starts` instead (`models/packed_attention.py`). No example sees
another, and every token of an example is where it would be alone. So loss, gradients and salience are those of a batch
with a row per example.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import numpy as np
import torch

from apt_ds.data.batching import Batch, round_up
from apt_ds.data.tokenized import IGNORED, Row


def pack(rows: Sequence[Row], pad_id: int, limit: int, single: bool = False) -> Batch:
    """The examples `rows` in as few and as short rows as `grouped` finds, see `pack_groups`.

    Args:
        rows: the examples.
        pad_id: the token of padding.
        limit: tokens a row may hold, at least those of the longest example.
        single: one row, however long it gets.
    """
    return pack_groups(rows, sharing([len(row["input_ids"]) for row in rows], limit, single), pad_id)


def pack_groups(rows: Sequence[Row], groups: Sequence[Sequence[int]], pad_id: int) -> Batch:
    """A batch with a row for each group, which names its examples by their place in `rows`. int64 tensors [B, L].

    Padding counts as an example of its own, with attention mask 0. The first token of an example has no label, as
    nothing before it predicts it.
    """
    longest = max(sum(len(rows[i]["input_ids"]) for i in group) for group in groups)
    shape = (len(groups), round_up(longest))
    input_ids, labels = np.full(shape, pad_id, np.int64), np.full(shape, IGNORED, np.int64)
    attention_mask, position_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, group in enumerate(groups):
        start = 0
        for i in group:
            end = start + len(rows[i]["input_ids"])
            input_ids[row, start:end] = rows[i]["input_ids"]
            labels[row, start + 1 : end] = rows[i]["labels"][1:]
            attention_mask[row, start:end] = 1
            position_ids[row, start:end] = np.arange(end - start)
            start = end
        position_ids[row, start:] = np.arange(shape[1] - start)
    begins = np.flatnonzero(position_ids == 0)
    starts = np.append(begins, position_ids.size).astype(np.int32)
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(attention_mask),
        torch.from_numpy(labels),
        position_ids=torch.from_numpy(position_ids),
        starts=torch.from_numpy(starts),
        longest=int(np.diff(starts).max()),
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


def over_slots(lengths: Sequence[int], slots: int, limit: int, single: bool = False) -> list[list[list[int]]]:
    """The examples of a step in rows of about equal lengths, and the rows in micro-batches.

    All examples of the step are packed together, so that rows get fuller than those of each micro-batch alone. All
    micro-batches have equal numbers of rows. That number is the one with the smallest tensors, the largest among
    equals. Rows are in order of their length, so that ranks that compute at the same time have equal work.

    Args:
        lengths: tokens of each example of the step.
        slots: number of micro-batches of all ranks. The number of examples is a multiple of it.
        limit: tokens a row may hold, at least those of the longest example.
        single: one row for each micro-batch, however long it gets.

    Returns:
        For each slot its rows, for each row its examples by their place in the step. Every example once. It depends on
        the arguments alone.
    """
    most, rest = divmod(len(lengths), slots)
    assert most and not rest
    if single:
        return [[row] for row in _levelled(lengths, slots)]
    if slots == 1:
        return [grouped(lengths, limit)]
    best: list[list[list[int]]] = []
    smallest = math.inf
    for count in range(most, 0, -1):
        rows = _levelled(lengths, count * slots)
        tokens = [sum(lengths[i] for i in row) for row in rows]
        if max(tokens) > limit:
            break
        ranked = [rows[i] for i in sorted(range(len(rows)), key=lambda i: -tokens[i])]
        micro_batches = [ranked[start : start + count] for start in range(0, len(ranked), count)]
        size = sum(padded_tokens(slot, lengths) for slot in micro_batches)
        if size < smallest:
            best, smallest = micro_batches, size
    return best


def padded_tokens(rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    """Tokens of a micro-batch's tensor, padding included. rows: places of each row's examples in `lengths`."""
    return len(rows) * round_up(max(sum(lengths[i] for i in row) for row in rows))


def _levelled(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Examples in `count` rows: the longest example goes to the shortest row, in turn. The first row wins a draw."""
    groups: list[list[int]] = [[] for _ in range(count)]
    shortest = [(0, row) for row in range(count)]
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        filled, row = heapq.heappop(shortest)
        groups[row].append(i)
        heapq.heappush(shortest, (filled + lengths[i], row))
    return groups
