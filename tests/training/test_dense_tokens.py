"""Which rows the dense model reads, and in which batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from apt_ds.config.run_config import RunConfig
from apt_ds.data.batching import GlobalOrder, collate
from apt_ds.data.teacher_cache import Layout
from apt_ds.data.tokenized import IGNORED, TokenizedSet
from apt_ds.runtime import collectives
from apt_ds.training import dense_tokens
from apt_ds.training.dense_tokens import DensePass, rows_read
from tests.support import tiny

DRAW = np.random.default_rng(0)
LENGTHS = DRAW.integers(3, 12, 13)
SET = TokenizedSet.of(
    [{"input_ids": (ids := DRAW.integers(3, 60, n).tolist()), "labels": [IGNORED, *ids[1:]]} for n in LENGTHS]
)
ROWS = np.array([0, 2, 3, 5, 7, 8, 11])
LAYOUT = Layout(ROWS, LENGTHS[ROWS] - 1, 4)


def test_only_rows_of_the_steps_are_read() -> None:
    order = GlobalOrder(100, 8, seed=3)
    read = rows_read(order, 5, 100)
    assert read.tolist() == sorted({index for step in range(5) for index in order.indices(step)}) and len(read) == 40
    assert rows_read(order, 1000, 100).tolist() == list(range(100))


def payloads(world: int, patch: pytest.MonkeyPatch) -> list[list[dense_tokens.Payload]]:
    """What the ranks of a world compute, one rank after the other."""
    by_rank = []
    patch.setattr(collectives, "world_size", lambda: world)
    patch.setattr(collectives, "gather_objects", lambda value: [value])
    for rank in range(world):
        patch.setattr(collectives, "rank", lambda rank=rank: rank)
        run = RunConfig(per_device_eval_batch_size=2, distill_temperature=1.5)
        rounds = list(DensePass(run, SET, LAYOUT, tiny.model().eval(), 0).rounds())
        by_rank.append([payload for one in rounds for payload in one])
        assert len(rounds) == -(-4 // world)
    return by_rank


def test_every_row_is_read_once_and_alike_in_any_world(monkeypatch: pytest.MonkeyPatch) -> None:
    (alone,) = payloads(1, monkeypatch)
    assert sorted(place for places, *_ in alone for place in places) == list(range(len(ROWS)))
    lengths = [LENGTHS[ROWS[place]] for places, *_ in alone for place in places]
    assert lengths == sorted(lengths, reverse=True)
    spread = [payload for own in payloads(3, monkeypatch) for payload in own]
    for places, ids, log_probabilities in alone:
        ((_, other_ids, others),) = [one for one in spread if one[0] == places]
        assert np.array_equal(ids, other_ids) and np.array_equal(log_probabilities, others)


def test_the_numbers_are_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model().eval()
    for places, ids, log_probabilities in payloads(1, monkeypatch)[0]:
        expected_ids, expected = [], []
        for place in places:
            with torch.no_grad():
                logits = model(collate([SET[int(ROWS[place])]], 0).input_ids).logits[0, : LAYOUT.counts[place]]
            top = F.log_softmax(logits / 1.5, -1).topk(4)
            expected_ids.append(top.indices)
            expected.append(top.values)
        assert np.array_equal(ids, torch.cat(expected_ids).numpy()) and ids.dtype == np.int32
        assert (
            np.allclose(log_probabilities, torch.cat(expected).numpy(), rtol=2e-3)
            and log_probabilities.dtype == np.float16
        )


def test_the_folder_is_below_the_data_cache_unless_it_is_named(tmp_path: Path) -> None:
    facts = {"model": "a"}
    run = RunConfig(data_cache_dir=str(tmp_path))
    assert dense_tokens.folder_of(run, facts).parent == tmp_path == dense_tokens.parent_of(run)
    assert dense_tokens.folder_of(run, facts) != dense_tokens.folder_of(run, {"model": "b"})
    named = run.replace(teacher_cache=str(tmp_path / "own"))
    assert dense_tokens.folder_of(named, facts) == tmp_path / "own"
