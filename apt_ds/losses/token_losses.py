"""Losses over a vocabulary: of a causal language model, and of the text that an encoder-decoder model writes.

They are computed at the LM head, for labelled tokens only (`lm_head.py`).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_ds.data.batching import Batch
from apt_ds.data.tokenized import IGNORED, Row
from apt_ds.losses import cross_entropy
from apt_ds.losses.distilled_cross_entropy import DistilledLoss
from apt_ds.losses.lm_head import (
    check_transform,
    distilled_loss_of,
    logits_of,
    loss_of,
    pad_positions,
    top_tokens_of,
)
from apt_ds.losses.task_loss import Inputs, Logits, TaskLoss, encoder_inputs
from apt_ds.losses.teacher_kl import TeacherTokens
from apt_ds.models.mask_checks import known_rows
from apt_ds.models.packed_attention import packed_inputs
from apt_ds.models.unwrap import pretrained_model
from apt_ds.runtime.transfer import sent

CHECKED_TOKENS = 4  # of the forward pass that `TokenLoss.check` runs


class LabelledTokens(NamedTuple):
    """The tokens of a batch that have a label.

    Attributes:
        positions: int64 [m] on the device, padded by `lm_head.pad_positions`. They index tokens row after row.
        targets: int64 [n <= m] on the device.
    """

    positions: Tensor
    targets: Tensor


class TokenLoss(TaskLoss):
    """Cross-entropy over a vocabulary, computed for labelled tokens only.

    Pass labels on the CPU: reading GPU labels here would synchronise with the device.
    """

    @abstractmethod
    def inputs(self, model: nn.Module, batch: Batch) -> Inputs:
        """Arguments of the model's forward."""

    def base_inputs(self, model: nn.Module, batch: Batch) -> Inputs:
        """`inputs`, without a cache."""
        return self.inputs(model, batch) | {"use_cache": False}

    @abstractmethod
    def token_targets(self, batch: Batch) -> Tensor:
        """The label of every token that reaches the LM head, int64 [B, L], `IGNORED` without a label."""

    def labelled_tokens(self, batch: Batch) -> LabelledTokens:
        """Positions and targets of the labelled tokens, on the batch's device."""
        targets, device = self.token_targets(batch), batch.input_ids.device
        positions = (targets != IGNORED).flatten().nonzero().squeeze(1)
        return LabelledTokens(
            sent(pad_positions(positions), device),
            sent(targets.flatten()[positions], device),
        )

    def logits(self, model: nn.Module, batch: Batch) -> Logits:
        """[labelled tokens, vocabulary]."""
        positions, targets = self.labelled_tokens(batch)
        with known_rows(batch.packed, batch.padded):
            return (logits_of(model, self.inputs(model, batch), positions, len(targets)),)

    def loss(self, logits: Logits, batch: Batch) -> Tensor:
        """Sum over labelled tokens."""
        return cross_entropy.of_logits(logits[0], self.labelled_tokens(batch).targets)

    def summed_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum over labelled tokens. A frozen LM head never holds all logits (`lm_head.loss_of`)."""
        with known_rows(batch.packed, batch.padded):
            return loss_of(model, self.inputs(model, batch), *self.labelled_tokens(batch))

    def distilled_loss(self, model: nn.Module, batch: Batch, weight: float, temperature: float) -> DistilledLoss:
        """Sum over labelled tokens, under the teacher whose tokens the batch has (`lm_head.distilled_loss_of`)."""
        assert batch.teacher_ids is not None and batch.teacher_log_probabilities is not None
        teacher = TeacherTokens(batch.teacher_ids, batch.teacher_log_probabilities, weight, temperature)
        with known_rows(batch.packed, batch.padded):
            return distilled_loss_of(model, self.inputs(model, batch), *self.labelled_tokens(batch), teacher)

    def top_tokens(self, model: nn.Module, batch: Batch, k: int, temperature: float) -> tuple[Tensor, Tensor]:
        """The k likeliest tokens for every labelled token, see `lm_head.top_tokens_of`."""
        positions, targets = self.labelled_tokens(batch)
        with known_rows(batch.packed, batch.padded):
            return top_tokens_of(model, self.inputs(model, batch), positions, len(targets), k, temperature)

    def check(self, model: nn.Module, device: torch.device) -> bool:
        """Compare a few tokens' logits with what the spec says of them, see `lm_head.check_transform`. Collective."""
        ids = torch.arange(CHECKED_TOKENS)[None]
        batch = Batch(ids, torch.ones_like(ids), labels=ids).to(device)
        return check_transform(model, self.inputs(model, batch))


class CausalLoss(TokenLoss):
    """Next-token loss of a causal language model."""

    def inputs(self, model: nn.Module, batch: Batch) -> Inputs:
        """Token ids, and positions of packed rows. No attention mask.

        Padding is on the right, where causal attention never reads it. In a row of several examples, positions that
        restart at 0 separate the examples, and variable-length kernels take the starts of the examples.
        """
        inputs = {"input_ids": batch.input_ids}
        if batch.position_ids is None:
            return inputs
        return inputs | packed_inputs(pretrained_model(model).config._attn_implementation, batch)

    def token_targets(self, batch: Batch) -> Tensor:
        """The labels of the next tokens, [B, L]."""
        return F.pad(_labels(batch)[:, 1:], (0, 1), value=IGNORED)

    def loss_denominator(self, row: Row) -> int:
        """Trained tokens."""
        return trained_tokens(row)


class Seq2SeqLoss(TokenLoss):
    """Loss of the text that an encoder-decoder model writes."""

    def inputs(self, model: nn.Module, batch: Batch) -> Inputs:
        """The encoder's inputs, and the decoder's from the labels."""
        labels = sent(_labels(batch), batch.input_ids.device)
        return encoder_inputs(batch) | {"decoder_input_ids": shift_right(labels, model)}

    def token_targets(self, batch: Batch) -> Tensor:
        """The labels, [B, T]."""
        return _labels(batch)

    def loss_denominator(self, row: Row) -> int:
        """Tokens that have a label."""
        return sum(label != IGNORED for label in row["labels"])

    def decoder_mask(self, batch: Batch) -> Tensor | None:
        """1 for tokens that have a label."""
        return sent((_labels(batch) != IGNORED).long(), batch.input_ids.device)


def shift_right(labels: Tensor, model: nn.Module) -> Tensor:
    """The decoder's input: the labels one step later, after the start token.

    Args:
        labels: int64 [B, T], `IGNORED` at padding.
        model: The model, or an engine around it, whose configuration names start and padding tokens.

    Returns:
        int64 [B, T].
    """
    config = pretrained_model(model).config
    start = torch.full_like(labels[:, :1], config.decoder_start_token_id)
    shifted = torch.cat([start, labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORED, config.pad_token_id)


def trained_tokens(row: Row) -> int:
    """Tokens of a causal example that have a loss. The first token has none, because nothing precedes it."""
    labels = row["labels"][1:]
    return len(labels) - labels.count(IGNORED)


def _labels(batch: Batch) -> Tensor:
    assert batch.labels is not None
    return batch.labels
