"""Padded batches, and the order of samples over steps, ranks and epochs."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from apt_ds.data.batching import GlobalOrder, collate
from apt_ds.data.tokenized import IGNORED


def test_rows_are_padded_to_a_multiple() -> None:
    batch = collate([{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}, {"input_ids": [8], "labels": [8]}], 9, 4)
    assert batch.input_ids.tolist() == [[5, 6, 7, 9], [8, 9, 9, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert batch.labels is not None and batch.labels.tolist()[1] == [8, IGNORED, IGNORED, IGNORED]
    assert batch.targets is None and batch.token_type_ids is None


def test_classes_are_whole_numbers_and_scores_are_not() -> None:
    classes = collate([{"input_ids": [1], "targets": [2]}], 0).targets
    scores = collate([{"input_ids": [1], "targets": [2.5]}], 0).targets
    assert classes is not None and scores is not None
    assert (classes.dtype, scores.dtype) == (torch.int64, torch.float32)


def test_a_batch_on_a_device_keeps_what_it_lacks() -> None:
    batch = collate([{"input_ids": [1, 2]}], 0)
    moved = batch.to("cpu")
    assert torch.equal(moved.input_ids, batch.input_ids) and moved.labels is None


@pytest.mark.parametrize(("n", "batch"), [(10, 4), (3, 7), (8, 8)])
def test_every_epoch_sees_every_sample_once(n: int, batch: int) -> None:
    order = GlobalOrder(n, batch, seed=3)
    seen = [index for step in range(n) for index in order.indices(step)]
    for start in range(0, len(seen) - n + 1, n):
        assert sorted(seen[start : start + n]) == list(range(n))
    assert set(Counter(seen).values()) == {batch}


@pytest.mark.parametrize(("world", "accumulation"), [(1, 4), (2, 2), (4, 1)])
def test_ranks_and_micro_batches_divide_the_global_batch(world: int, accumulation: int) -> None:
    order = GlobalOrder(11, 8, seed=1)
    parts = [order.micro(5, m, rank, world, 2) for m in range(accumulation) for rank in range(world)]
    assert [index for part in parts for index in part] == order.indices(5)


def test_the_order_depends_on_the_seed() -> None:
    assert GlobalOrder(50, 10, 1).indices(0) != GlobalOrder(50, 10, 2).indices(0)
    assert GlobalOrder(10, 4).steps(1.0) == 3
