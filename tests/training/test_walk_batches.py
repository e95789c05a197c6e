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


def walked(task_type: str, examples: int, rows: int = 2, **layout: object) -> list[WalkBatch]:
    """Batches of `rows` examples, and four examples in a step."""
    model = tiny.small("t5") if task_type == GENERATION else tiny.model()
    data = [{"input_ids": [4] * n, "labels": [IGNORED] * (n - 2) + [5] * 2} for n in LENGTHS]
    run = RunConfig(per_device_train_batch_size=rows, gradient_accumulation_steps=4 // rows, repair_examples=examples)
    batches = MicroBatches(run.replace(**layout), TokenizedSet.of(data), order(), 0, CPU)
    return walk_batches(run, TASK_LOSSES[task_type], batches, model)


def order() -> GlobalOrder:
    return GlobalOrder(len(LENGTHS), 4, 0)


@pytest.mark.parametrize(("examples", "count"), [(1, 2), (4, 2), (5, 4), (8, 4)])
def test_whole_steps_cover_the_examples(examples: int, count: int) -> None:
    assert len(walked(LANGUAGE_MODEL, examples)) == count


def test_padding_does_not_count_and_examples_go_to_the_halves_in_turn() -> None:
    batches = walked(LANGUAGE_MODEL, 8)
    assert sum(int(batch.tokens.counted.sum()) for batch in batches) == sum(LENGTHS)
    for number, batch in enumerate(batches):
        assert batch.decoder_tokens is None
        step = number // 2
        first, second = batch.tokens.half.view(2, -1)
        assert first.unique().tolist() == [step % 2] and second.unique().tolist() == [1 - step % 2]


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("layout", [{}, {"packing": True, "max_seq_length": 24}, {"packing": True}])
def test_the_layout_of_a_step_leaves_examples_in_their_halves(rows: int, layout: dict[str, object]) -> None:
    """Accumulation, which shares the slots of ranks, and examples that share a row."""
    counts = [0, 0]
    for step in range(2):
        for place, index in enumerate(order().indices(step)):
            counts[(step + place) % 2] += LENGTHS[index]
    tokens = [batch.tokens for batch in walked(LANGUAGE_MODEL, 8, rows, **layout)]
    assert [sum(int((each.counted & (each.half == half)).sum()) for each in tokens) for half in (0, 1)] == counts


def test_a_decoder_counts_the_tokens_with_a_label() -> None:
    for batch in walked(GENERATION, 4):
        assert batch.decoder_tokens is not None
        assert batch.decoder_tokens.counted.view(2, -1).sum(1).tolist() == [2, 2]
        assert batch.decoder_tokens.half.view(2, -1)[:, 0].tolist() == batch.tokens.half.view(2, -1)[:, 0].tolist()
