"""Rows of any columns: kept whole on their way between processes, told apart, padded into batches."""

from __future__ import annotations

import pytest
import torch

from apt_ds.data.batching import collate
from apt_ds.data.tokenized import IGNORED, Row, TokenizedSet

PAIRS: list[Row] = [
    {"input_ids": [5, 6, 7], "token_type_ids": [0, 0, 1], "targets": [2]},
    {"input_ids": list(range(9)), "token_type_ids": [0] * 4 + [1] * 5, "targets": [0]},
]
SPANS: list[Row] = [{"input_ids": [5, 6], "targets": [0, 1]}, {"input_ids": [1], "targets": [0, 0]}]
SCORES: list[Row] = [{"input_ids": [5, 6], "targets": [3.8]}, {"input_ids": [1], "targets": [5.0]}]
SUMMARIES: list[Row] = [
    {"input_ids": list(range(17)), "labels": [4, 1]},
    {"input_ids": [3], "labels": [4, 5, 6, 7, 8, 9, 10, 11, 1]},
]
SETS = {"pairs": PAIRS, "spans": SPANS, "scores": SCORES, "summaries": SUMMARIES, "nothing": []}


@pytest.mark.parametrize("name", SETS)
def test_a_set_travels_whole(name: str) -> None:
    token_set = TokenizedSet.of(SETS[name], dropped=3)
    arrived = TokenizedSet.from_bytes(token_set.to_bytes())
    assert arrived == token_set and arrived.dropped == 3 and len(arrived) == len(SETS[name])
    assert TokenizedSet.of(arrived.rows).fingerprint == token_set.fingerprint
    for row, given in zip(arrived.rows, SETS[name], strict=True):
        assert all(row[name] == pytest.approx(values) for name, values in given.items())
        assert {key: type(values[0]) for key, values in row.items()} == {key: type(v[0]) for key, v in given.items()}


def test_a_fingerprint_tells_columns_borders_order_and_kinds_apart() -> None:
    variants: list[list[Row]] = [
        [{"input_ids": [1, 2], "labels": [3]}],
        [{"input_ids": [1], "labels": [2, 3]}],
        [{"input_ids": [3], "labels": [1, 2]}],
        [{"labels": [1, 2], "targets": [3]}],
        [{"input_ids": [1, 2, 3]}],
        [{"input_ids": [1, 2]}, {"input_ids": [3]}],
        [{"input_ids": [1]}, {"input_ids": [2, 3]}],
        [{"input_ids": [2, 3]}, {"input_ids": [1]}],
        [{"input_ids": [1.0, 2.0, 3.0]}],
        [],
    ]
    assert len({TokenizedSet.of(rows).fingerprint for rows in variants}) == len(variants)
    turned = [{"labels": [3], "input_ids": [1, 2]}]
    assert TokenizedSet.of(turned).fingerprint == TokenizedSet.of(variants[0]).fingerprint


def test_rows_of_different_columns_are_a_mistake() -> None:
    with pytest.raises(AssertionError):
        TokenizedSet.of([PAIRS[0], SPANS[0]])


def test_pairs_are_padded_to_one_length() -> None:
    batch = collate(PAIRS, pad_id=2).to("cpu")
    assert batch.labels is None and batch.token_type_ids is not None
    assert batch.input_ids.shape == batch.token_type_ids.shape == batch.attention_mask.shape == (2, 16)
    assert batch.token_type_ids[0].tolist() == [0, 0, 1] + [0] * 13
    assert batch.attention_mask.sum(dim=1).tolist() == [3, 9]
    assert batch.targets.dtype == torch.int64 and batch.targets.tolist() == [[2], [0]]


def test_scores_are_fractions_and_spans_are_two_indices() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        scores = collate(TokenizedSet.of(SCORES).rows, pad_id=0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert scores.targets.dtype == torch.float32
    assert torch.equal(scores.targets, torch.tensor([[3.8], [5.0]])) and scores.token_type_ids is None
    spans = collate(SPANS, pad_id=0)
    assert spans.targets.dtype == torch.int64 and spans.targets.tolist() == [[0, 1], [0, 0]]


def test_a_decoder_has_a_length_of_its_own() -> None:
    batch = collate(SUMMARIES, pad_id=0)
    assert batch.input_ids.shape == batch.attention_mask.shape == (2, 24) and batch.labels.shape == (2, 16)
    assert batch.labels[0].tolist() == [4, 1] + [IGNORED] * 14
    assert batch.attention_mask.sum(dim=1).tolist() == [17, 1] and batch.targets is None
    assert collate(SUMMARIES, pad_id=0, multiple=1).labels.shape == (2, 9)
