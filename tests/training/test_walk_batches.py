"""The calibration batches of a walk: which examples, which tokens count, and to which half each belongs."""

from __future__ import annotations

import pytest
import torch

from apt_ds.config.run_config import RunConfig
from apt_ds.config.tasks import GENERATION, LANGUAGE_MODEL
from apt_ds.data.batching import GlobalOrder
from apt_ds.data.tokenized import IGNORED, TokenizedSet
from apt_ds.losses.task_losses import TASK_LOSSES
from apt_ds.pruning.layer_walk import WalkBatch
from apt_ds.training.micro_batches import MicroBatches
from apt_ds.training.walk_batches import walk_batches
from tests.support import tiny

CPU = torch.device("cpu")
LENGTHS = [9, 5, 12, 7, 3, 8, 11, 6]


def walked(task_type: str, examples: int) -> list[WalkBatch]:
    """Batches of two rows, two in a step."""
    model = tiny.small("t5") if task_type == GENERATION else tiny.model()
    rows = [{"input_ids": [4] * n, "labels": [IGNORED] * (n - 2) + [5] * 2} for n in LENGTHS]
    run = RunConfig(per_device_train_batch_size=2, gradient_accumulation_steps=2, repair_examples=examples)
    batches = MicroBatches(run, TokenizedSet.of(rows), GlobalOrder(len(rows), 4, 0), 0, CPU)
    return walk_batches(run, TASK_LOSSES[task_type], batches, model)


@pytest.mark.parametrize(("examples", "count"), [(1, 2), (4, 2), (5, 4), (8, 4)])
def test_whole_steps_cover_the_examples(examples: int, count: int) -> None:
    assert len(walked(LANGUAGE_MODEL, examples)) == count


def test_padding_does_not_count_and_rows_go_to_the_halves_in_turn() -> None:
    batches = walked(LANGUAGE_MODEL, 8)
    assert sum(int(batch.tokens.counted.sum()) for batch in batches) == sum(LENGTHS)
    for number, batch in enumerate(batches):
        assert batch.decoder_tokens is None
        first, second = batch.tokens.half.view(2, -1)
        assert first.unique().tolist() == [number % 2] and second.unique().tolist() == [1 - number % 2]


def test_a_decoder_counts_the_tokens_with_a_label() -> None:
    for batch in walked(GENERATION, 4):
        assert batch.decoder_tokens is not None
        assert batch.decoder_tokens.counted.view(2, -1).sum(1).tolist() == [2, 2]
        assert batch.decoder_tokens.half.view(2, -1)[:, 0].tolist() == batch.tokens.half.view(2, -1)[:, 0].tolist()
