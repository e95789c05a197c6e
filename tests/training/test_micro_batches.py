"""What each step sees: the same examples for any number of ranks, any start, with and without threads."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from apt_ds.config.run_config import RunConfig
from apt_ds.data.batching import Batch, GlobalOrder
from apt_ds.data.length_order import LengthOrder, Order
from apt_ds.data.mixture_order import MixtureOrder
from apt_ds.data.plain_text import TokenBlocks
from apt_ds.data.rows import Joined
from apt_ds.data.teacher_cache import CacheWriter, Layout, TeacherCache
from apt_ds.data.tokenized import IGNORED, TokenizedSet
from apt_ds.runtime import collectives
from apt_ds.training.micro_batches import MicroBatches

CPU = torch.device("cpu")
BATCH, STEPS = 8, 30
FLAGS = {
    "plain": {},
    "packed": {"packing": True},
    "grouped": {"group_by_length": True},
    "one_row": {"packing": True, "attn_implementation": "varlen"},
}


def rows() -> Joined:
    """Instructions of many lengths and blocks of text. The first token of each names it."""
    draw = np.random.default_rng(0)
    instructions = []
    for number in range(60):
        ids = [100 + number, *draw.integers(3, 90, draw.integers(1, 30)).tolist()]
        instructions.append({"input_ids": ids, "labels": [IGNORED, *ids[1:]]})
    text = TokenBlocks(np.arange(1000, 1000 + 20 * 32, dtype=np.int32), 32, None)
    return Joined([TokenizedSet.of(instructions), text])


SET = rows()


def order_of(mode: str) -> Order:
    inner = MixtureOrder((60, 20), (0.75, 0.25), BATCH, 5)
    return LengthOrder(inner, SET.lengths, 5, STEPS) if mode == "grouped" else inner


def ranks(mode: str, world: int, micro: int, workers: int, patch: pytest.MonkeyPatch) -> list[MicroBatches]:
    """The micro-batches of every rank."""
    size = {"per_device_train_batch_size": BATCH // world // micro, "gradient_accumulation_steps": micro}
    run = RunConfig(max_seq_length=48, dataloader_num_workers=workers, **size, **FLAGS[mode])
    batches = []
    patch.setattr(collectives, "world_size", lambda: world)
    for rank in range(world):
        patch.setattr(collectives, "rank", lambda rank=rank: rank)
        batches.append(MicroBatches(run, SET, order_of(mode), 0, CPU))
    return batches


def examples(batch: Batch) -> list[list[int]]:
    """The token ids of each example of a batch."""
    ids = []
    for i, row in enumerate(batch.input_ids):
        real = row[batch.attention_mask[i] == 1]
        if batch.position_ids is None:
            ids.append(real.tolist())
        else:
            starts = (batch.position_ids[i, : len(real)] == 0).nonzero().flatten().tolist()
            ids += [real[a:b].tolist() for a, b in zip(starts, [*starts[1:], len(real)], strict=True)]
    return ids


def equal(one: Batch, other: Batch) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Batch)]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("mode", FLAGS)
def test_any_split_sees_the_same_examples(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    order = order_of(mode)
    for world, micro in ((1, 1), (1, 4), (2, 2), (4, 1), (2, 1)):
        by_rank = ranks(mode, world, micro, 0, monkeypatch)
        for step in range(6):
            seen = [ids for rank in by_rank for m in range(micro) for ids in examples(rank.on_host(step, m))]
            assert sorted(seen) == sorted(SET[i]["input_ids"] for i in order.indices(step)), (world, micro, step)
            assert by_rank[0].rows(step) == [SET[i] for i in order.indices(step)]
            # the report of fill is of these very tensors
            batches = [rank.on_host(step, m) for rank in by_rank for m in range(micro)]
            layout = by_rank[0].step(step).layout
            assert layout.tokens == sum(int(batch.attention_mask.sum()) for batch in batches)
            assert layout.tensor_tokens == sum(batch.input_ids.numel() for batch in batches)


@pytest.mark.parametrize("mode", FLAGS)
def test_two_ranks_have_the_micro_batches_of_one(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, pair = ranks(mode, 1, 4, 0, monkeypatch)[0], ranks(mode, 2, 2, 0, monkeypatch)
    for step in (0, 7, 21):
        for slot in range(4):
            assert equal(alone.on_host(step, slot), pair[slot % 2].on_host(step, slot // 2))


@pytest.mark.parametrize("mode", FLAGS)
def test_threads_and_a_new_start_change_nothing(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = ranks(mode, 2, 2, 0, monkeypatch)[1]
    expected = {(step, m): straight.on_host(step, m) for step in range(STEPS) for m in range(2)}
    for workers, start in ((1, 0), (2, 11), (0, 23), (3, 29)):
        batches = ranks(mode, 2, 2, workers, monkeypatch)[1]
        for step in range(start, STEPS):
            # a preview asks for later micro-batches before the first
            for m in (1, 0, 1):
                assert equal(batches.on_host(step, m), expected[step, m]), (workers, step, m)
        batches.close()


def test_a_single_source_has_todays_order(monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunConfig(per_device_train_batch_size=4)
    batches = MicroBatches(run, SET.parts[0], GlobalOrder(60, 4, 128), 0, CPU)
    permutation = np.random.default_rng([128, 0]).permutation(60)
    assert batches.rows(3) == [SET[int(i)] for i in permutation[12:16]]
    assert [ids[0] for ids in examples(batches.on_host(3, 0))] == [100 + int(i) for i in permutation[12:16]]


@pytest.mark.parametrize("mode", list(FLAGS))
def test_a_teacher_speaks_of_the_same_trained_tokens(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache names each trained token itself, so that it must equal the labels of the batch in their order."""
    labels = [np.array(SET[number]["labels"][1:]) for number in range(len(SET))]
    trained = [own[own != IGNORED] for own in labels]
    writer = CacheWriter(tmp_path / "cache", Layout(np.arange(len(SET)), np.array([*map(len, trained)]), 1))
    ids = np.concatenate(trained).astype(np.int32)[:, None]
    writer.write(range(len(SET)), ids, -ids.astype(np.float16))
    writer.finish({}, 0.0)
    for batches in ranks(mode, 2, 2, 0, monkeypatch):
        batches.add_teacher(TeacherCache(tmp_path / "cache"))
        for step in range(3):
            for micro in range(2):
                batch = batches.on_host(step, micro)
                targets = batch.labels[:, 1:]
                assert torch.equal(batch.teacher_ids[:, 0].long(), targets[targets != IGNORED])
                assert torch.equal(batch.teacher_log_probabilities, -batch.teacher_ids.half())
