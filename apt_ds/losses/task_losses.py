"""The loss of each task type. `task_loss.py` has their interface, `token_losses.py` those over a vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_ds.config.tasks import ANSWERS, CLASSIFICATION, GENERATION, LANGUAGE_MODEL
from apt_ds.data.batching import Batch
from apt_ds.losses.task_loss import Logits, TaskLoss, encoder_inputs
from apt_ds.losses.token_losses import CausalLoss, Seq2SeqLoss
from apt_ds.models.mask_checks import known_rows
from apt_ds.runtime.transfer import sent


class ClassLoss(TaskLoss):
    """Cross-entropy of a class, or the squared error of a score."""

    def logits(self, model: nn.Module, batch: Batch) -> Logits:
        """[B, classes], or [B, 1] for a score."""
        with known_rows(batch.packed, batch.padded):
            return (model(**encoder_inputs(batch)).logits,)

    def loss(self, logits: Logits, batch: Batch) -> Tensor:
        """Sum over examples."""
        assert batch.targets is not None
        predictions, targets = logits[0].float(), batch.targets[:, 0]
        if targets.is_floating_point():
            return F.mse_loss(predictions[:, 0], targets, reduction="sum")
        return F.cross_entropy(predictions, targets, reduction="sum")


class SpanLoss(TaskLoss):
    """Cross-entropy of the first and the last token of an answer."""

    def logits(self, model: nn.Module, batch: Batch) -> Logits:
        """Logits of the start and of the end, [B, L] each. Padding has the lowest number of the dtype."""
        with known_rows(batch.packed, batch.padded):
            output = model(**encoder_inputs(batch))
        padding = batch.attention_mask == 0
        lowest = torch.finfo(output.start_logits.dtype).min
        return tuple(side.masked_fill(padding, lowest) for side in (output.start_logits, output.end_logits))

    def loss(self, logits: Logits, batch: Batch) -> Tensor:
        """Mean of start and end, summed over windows."""
        assert batch.targets is not None
        ends = zip(logits, batch.targets.unbind(1), strict=True)
        return torch.stack([F.cross_entropy(side.float(), end, reduction="sum") for side, end in ends]).mean()


TASK_LOSSES: dict[str, TaskLoss] = {
    LANGUAGE_MODEL: CausalLoss(),
    CLASSIFICATION: ClassLoss(),
    ANSWERS: SpanLoss(),
    GENERATION: Seq2SeqLoss(),
}


def summed_loss(model: nn.Module, batch: Batch, task_type: str = LANGUAGE_MODEL) -> Tensor:
    """The loss of a batch, summed over its predictions: an fp32 scalar."""
    return TASK_LOSSES[task_type].summed_loss(model, batch)


@torch.no_grad()
def token_losses(model: nn.Module, input_ids: Tensor, device: torch.device) -> Tensor:
    """Next-token loss summed over all tokens but the first of each row.

    Args:
        model: A causal language model, or an engine around it.
        input_ids: int64 [B, L] on the CPU.
        device: The model's device.

    Returns:
        fp32 scalar in nats.
    """
    ones = torch.ones_like(input_ids)
    batch = Batch(sent(input_ids, device), ones, labels=input_ids, padded=False, packed=False)
    return summed_loss(model, batch)
