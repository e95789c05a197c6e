"""Targets of losses over a vocabulary, and what a decoder reads."""

from __future__ import annotations

from apt_ds.config.tasks import GENERATION
from apt_ds.data.batching import collate
from apt_ds.data.tokenized import IGNORED, Row
from apt_ds.losses.task_losses import TASK_LOSSES
from apt_ds.losses.token_losses import CausalLoss, Seq2SeqLoss, shift_right
from tests.support import tiny

CAUSAL: list[Row] = [
    {"input_ids": [5, 6, 7, 8], "labels": [IGNORED, IGNORED, 7, 8]},
    {"input_ids": [9, 4], "labels": [9, 4]},
]
SEQ2SEQ: list[Row] = [{"input_ids": [5, 6, 7], "labels": [7, 8, 9]}, {"input_ids": [9], "labels": [4]}]


def test_targets_of_a_causal_model_are_the_next_tokens() -> None:
    batch = collate(CAUSAL, 0)
    targets = CausalLoss().token_targets(batch)
    assert targets[0, :4].tolist() == [IGNORED, 7, 8, IGNORED] and targets[1, :2].tolist() == [4, IGNORED]
    positions, values = CausalLoss().labelled_tokens(batch)
    assert positions.tolist() == [1, 2, batch.input_ids.shape[1], 0, 0, 0, 0, 0] and values.tolist() == [7, 8, 4]


def test_the_decoder_reads_its_labels_one_step_later() -> None:
    model, batch = tiny.small("t5"), collate(SEQ2SEQ, 0)
    config = model.config
    shifted = shift_right(batch.labels, model)
    start, pad = config.decoder_start_token_id, config.pad_token_id
    assert shifted[0, :4].tolist() == [start, 7, 8, 9] and shifted[1, :4].tolist() == [start, 4, pad, pad]
    assert TASK_LOSSES[GENERATION].decoder_mask(batch).sum(1).tolist() == [3, 1]
    assert isinstance(TASK_LOSSES[GENERATION], Seq2SeqLoss) and CausalLoss().decoder_mask(batch) is None
