"""Batches of fake tensors, which have a shape and no content, and losses that read no content of them."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from apt_ds.config.run_config import RunConfig
from apt_ds.config.tasks import ANSWERS, GENERATION
from apt_ds.data.batching import Batch
from apt_ds.data.tokenized import Row
from apt_ds.losses.lm_head import pad_positions
from apt_ds.losses.task_loss import Inputs, TaskLoss
from apt_ds.losses.task_losses import TASK_LOSSES
from apt_ds.losses.token_losses import LabelledTokens, TokenLoss

OUTPUTS = {ANSWERS: 2}  # targets per row. All other task types have 1


class Shape(NamedTuple):
    """Sizes of a micro-batch.

    Attributes:
        rows: number of rows.
        length: tokens per row.
        written: decoder tokens per row. 0 without a decoder.
        trained: tokens of the micro-batch that have a target. 0 for a task with one answer per row.
    """

    rows: int
    length: int
    written: int
    trained: int


def batch_of(task_type: str, shape: Shape) -> Batch:
    """A batch of a shape. Call it inside `fake`."""
    ids = torch.zeros(shape.rows, shape.length, dtype=torch.int64)
    labels = torch.zeros(shape.rows, shape.written, dtype=torch.int64) if task_type == GENERATION else None
    targets = torch.zeros(shape.rows, OUTPUTS.get(task_type, 1), dtype=torch.int64)
    return Batch(ids, torch.ones_like(ids), labels, targets=targets)


def with_teacher(batch: Batch, run: RunConfig, shape: Shape) -> Batch:
    """The batch with what the dense model says of its trained tokens, if it teaches. Call it inside `fake`."""
    if not run.pruning.dense_teacher:
        return batch
    known = shape.trained, run.pruning.distill_top_k
    ids, log_probabilities = torch.zeros(known, dtype=torch.int32), torch.zeros(known, dtype=torch.float16)
    return replace(batch, teacher_ids=ids, teacher_log_probabilities=log_probabilities)


def summed_loss(model: nn.Module, task_type: str, shape: Shape) -> Tensor:
    """`task_losses.summed_loss` of an evaluation batch."""
    return counted(task_type, shape).summed_loss(model, batch_of(task_type, shape))


class CountedTokens(TokenLoss):
    """A task's loss on a number of labelled tokens. It reads no labels, because fake tensors have no content."""

    def __init__(self, task_loss: TokenLoss, count: int) -> None:
        self.task_loss, self.targets = task_loss, torch.zeros(count, dtype=torch.int64)
        self.positions = pad_positions(self.targets)

    def labelled_tokens(self, batch: Batch) -> LabelledTokens:
        """The first token, `count` times."""
        return LabelledTokens(self.positions, self.targets)

    def inputs(self, model: nn.Module, batch: Batch) -> Inputs:
        """As the task's."""
        return self.task_loss.inputs(model, batch)

    def token_targets(self, batch: Batch) -> Tensor:
        """As the task's."""
        return self.task_loss.token_targets(batch)

    def loss_denominator(self, row: Row) -> int:
        """As the task's."""
        return self.task_loss.loss_denominator(row)

    def decoder_mask(self, batch: Batch) -> Tensor | None:
        """As the task's."""
        return self.task_loss.decoder_mask(batch)


def counted(task_type: str, shape: Shape) -> TaskLoss:
    """The loss of a task type with a number of tokens in place of the tokens, which would need content."""
    task_loss = TASK_LOSSES[task_type]
    return CountedTokens(task_loss, shape.trained) if isinstance(task_loss, TokenLoss) else task_loss
