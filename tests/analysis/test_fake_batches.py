"""Batches without content, and losses that need none."""

from __future__ import annotations

import torch

from apt_ds.analysis.fake_batches import Shape, batch_of, counted, with_teacher
from apt_ds.config.run_config import RunConfig
from apt_ds.config.tasks import ANSWERS, CLASSIFICATION, GENERATION, LANGUAGE_MODEL
from apt_ds.losses.token_losses import TokenLoss


def test_a_batch_has_its_shape() -> None:
    written = batch_of(GENERATION, Shape(3, 16, 8, 20))
    assert written.input_ids.shape == (3, 16) and written.labels is not None and written.labels.shape == (3, 8)
    answers = batch_of(ANSWERS, Shape(3, 16, 0, 0))
    assert answers.labels is None and answers.targets is not None and answers.targets.shape == (3, 2)


def test_a_teacher_knows_the_trained_tokens() -> None:
    shape = Shape(2, 8, 0, 5)
    run, batch = RunConfig(distill="logits", distill_top_k=4), batch_of(LANGUAGE_MODEL, shape)
    taught = with_teacher(batch, run, shape)
    assert taught.teacher_ids is not None and taught.teacher_ids.shape == (5, 4)
    assert taught.teacher_log_probabilities is not None and taught.teacher_log_probabilities.dtype == torch.float16
    assert with_teacher(batch, RunConfig(distill="none"), shape) is batch


def test_a_loss_counts_tokens_without_reading_labels() -> None:
    loss = counted(LANGUAGE_MODEL, Shape(2, 8, 0, 5))
    assert isinstance(loss, TokenLoss)
    positions, targets = loss.labelled_tokens(batch_of(LANGUAGE_MODEL, Shape(2, 8, 0, 5)))
    assert len(targets) == 5 <= len(positions)
    assert not isinstance(counted(CLASSIFICATION, Shape(2, 8, 0, 0)), TokenLoss)
