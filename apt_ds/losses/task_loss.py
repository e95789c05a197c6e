"""The interface of a task's loss: the logits of a batch, their loss, and the denominator of the mean.

Losses are sums. The caller divides them by the denominator of the whole global batch. So the mean does not depend on
how that batch is split over ranks and micro-batches. For the same reason no softmax includes padding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from apt_ds.data.batching import Batch
from apt_ds.data.tokenized import Row

Inputs = dict[str, Any]
Logits = tuple[Tensor, ...]  # each [predictions, choices]. One choice is a regression


class TaskLoss(ABC):
    """What training minimises for one task type, and how distillation sees its predictions."""

    @abstractmethod
    def logits(self, model: nn.Module, batch: Batch) -> Logits:
        """Logits of everything in `batch` that has a label, each [predictions, choices]."""

    @abstractmethod
    def loss(self, logits: Logits, batch: Batch) -> Tensor:
        """The loss of `logits`, summed over predictions: an fp32 scalar."""

    def base_inputs(self, model: nn.Module, batch: Batch) -> Inputs:
        """Arguments of the base model's forward: the model without what makes its predictions."""
        return encoder_inputs(batch)

    def summed_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of a batch for callers that do not use its logits: an fp32 scalar."""
        return self.loss(self.logits(model, batch), batch)

    def loss_denominator(self, row: Row) -> int:
        """What an example adds to the denominator of the mean loss: its predictions."""
        return 1

    def check(self, model: nn.Module, device: torch.device) -> bool:
        """Whether `summed_loss` needs no more than the loss at the LM head. Collective."""
        return True

    def decoder_mask(self, batch: Batch) -> Tensor | None:
        """int64 [B, T], 1 for tokens of a decoder that have a label, on the device. None without a decoder."""
        return None


def encoder_inputs(batch: Batch) -> Inputs:
    """Arguments of an encoder's forward."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    return inputs if batch.token_type_ids is None else inputs | {"token_type_ids": batch.token_type_ids}
