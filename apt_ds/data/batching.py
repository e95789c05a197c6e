"""Padded batches and the order of samples.

The order depends on the seed and the step alone, so that a run resumes from its step number and sees the same
global batches however they are split over ranks and micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apt_ds.data.tokenized import IGNORED, Row

MULTIPLE = 8  # padded lengths are multiples of it: matrix products of odd sizes are slower


@dataclass(frozen=True)
class Batch:
    """Right-padded rows. L, the tokens of a row, and T, the tokens of a decoder's row, are rounded up to a multiple.

    What the rows do not have is None.

    Attributes:
        input_ids: [B, L].
        attention_mask: [B, L]. 1 for a token, 0 for padding.
        labels: [B, L] of a causal model, [B, T] of a decoder. -100 where untrained.
        token_type_ids: [B, L].
        targets: [B, 1], class (int64) or score (float32). Or [B, 2], first and last token of the answer (int64).
        position_ids: [B, L], of packed rows. They restart at every example.
        starts: int32 [examples + 1], of packed rows. The first token of every example in the rows one after the other,
            and the end of the rows.
        longest: tokens of the longest example of packed rows.
        padded: whether attention_mask has a 0. None if unknown. It saves the host from asking the device.
        packed: whether position_ids restart inside a row. None if unknown. It saves the host from asking the device.
        teacher_ids: int32 [tokens, k], with a teacher. Its k likeliest tokens for each trained token.
        teacher_log_probabilities: fp16 [tokens, k]. Their log-probabilities.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None = None
    token_type_ids: Tensor | None = None
    targets: Tensor | None = None
    position_ids: Tensor | None = None
    starts: Tensor | None = None
    longest: int = 0
    padded: bool | None = None
    packed: bool | None = None
    teacher_ids: Tensor | None = None
    teacher_log_probabilities: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """A copy of the batch on `device`. Sent from pinned memory, so that a GPU at work is not waited for."""
        ready = self.pinned() if torch.device(device).type == "cuda" else self
        return ready._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The batch in pinned memory. Tensors that already are there stay the same, as do those on a GPU."""
        return self._each(lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **changed)


def round_up(length: int, multiple: int = MULTIPLE) -> int:
    """The next multiple of `multiple`: a padded length."""
    return math.ceil(length / multiple) * multiple


def collate(rows: Sequence[Row], pad_id: int, multiple: int = MULTIPLE) -> Batch:
    """Pads rows with the same columns to one length, a multiple of `multiple`, labels to their own."""
    fills = {"input_ids": pad_id, "token_type_ids": 0, "labels": IGNORED}
    columns: dict[str, Any] = {
        name: _pad(rows, name, fill, multiple) for name, fill in fills.items() if name in rows[0]
    }
    lengths = np.array([len(row["input_ids"]) for row in rows])
    mask = torch.from_numpy((np.arange(columns["input_ids"].shape[1]) < lengths[:, None]).astype(np.int64))
    targets = _targets(rows) if "targets" in rows[0] else None
    return Batch(attention_mask=mask, targets=targets, padded=not bool(mask.all()), packed=False, **columns)


def _pad(rows: Sequence[Row], name: str, fill: int, multiple: int) -> Tensor:
    longest = max(len(row[name]) for row in rows)
    padded = np.full((len(rows), round_up(longest, multiple)), fill, np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row[name])] = row[name]
    return torch.from_numpy(padded)


def _targets(rows: Sequence[Row]) -> Tensor:
    scores = any(isinstance(value, float) for row in rows for value in row["targets"])
    return torch.tensor([row["targets"] for row in rows], dtype=torch.float32 if scores else torch.int64)


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n).astype(np.int32 if n < 1 << 31 else np.int64)


@dataclass(frozen=True)
class GlobalOrder:
    """Which of `n` samples each optimizer step sees, as a pure function of seed and step.

    Epochs are permutations laid end to end, so a step may end one epoch and begin the next, and no sample
    is left out. `global_batch` may exceed `n`.
    """

    n: int
    global_batch: int
    seed: int = 0

    def __post_init__(self) -> None:
        assert self.n > 0 and self.global_batch > 0 and self.seed >= 0

    def indices(self, step: int) -> list[int]:
        """The `global_batch` sample indices of optimizer step `step`, counted from 0."""
        first = step * self.global_batch
        places = (divmod(place, self.n) for place in range(first, first + self.global_batch))
        return [int(_permutation(self.n, self.seed, epoch)[offset]) for epoch, offset in places]

    def micro(self, step: int, micro: int, rank: int, world: int, per_device: int) -> list[int]:
        """The `per_device` indices that rank `rank` of `world` takes in micro-batch `micro` of the step."""
        first = (micro * world + rank) * per_device
        assert 0 <= rank < world and first + per_device <= self.global_batch
        return self.indices(step)[first : first + per_device]

    def times_seen(self, steps: int) -> np.ndarray:
        """How often the first `steps` optimizer steps take each sample, int64 [n]."""
        epochs, rest = divmod(steps * self.global_batch, self.n)
        times = np.full(self.n, epochs, np.int64)
        times[_permutation(self.n, self.seed, epochs)[:rest]] += 1
        return times

    def steps(self, epochs: float) -> int:
        """Optimizer steps in which every sample is seen `epochs` times, rounded up."""
        return math.ceil(epochs * self.n / self.global_batch)
