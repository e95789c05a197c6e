"""Shapes that no batch exceeds."""

from __future__ import annotations

from apt_ds.analysis.batch_bounds import bound, one_per_row
from apt_ds.config.tasks import CLASSIFICATION, GENERATION, LANGUAGE_MODEL
from apt_ds.data.batching import round_up
from apt_ds.data.tokenized import IGNORED, Row, TokenizedSet


def rows(*given: Row) -> TokenizedSet:
    return TokenizedSet.of(given, 0)


def test_a_bound_is_the_largest_of_each_dimension() -> None:
    short: Row = {"input_ids": [4] * 5, "labels": [IGNORED, IGNORED, 3, 4, 5]}
    long: Row = {"input_ids": [4] * 20, "labels": [IGNORED] * 18 + [3, 4]}
    texts = rows(short, short, long)
    # two rows with three targets each, then one long row with two targets
    assert bound(texts, [one_per_row([0, 1]), one_per_row([2])], LANGUAGE_MODEL) == (2, round_up(20), 0, 6)
    # two examples in one row
    assert bound(texts, [[[0, 2]]], LANGUAGE_MODEL) == (1, round_up(25), 0, 5)


def test_answers_count_where_a_decoder_writes_them() -> None:
    pairs = rows({"input_ids": [4] * 3, "labels": [5] * 9}, {"input_ids": [4] * 10, "labels": [5] * 2})
    assert bound(pairs, [one_per_row([0, 1])], GENERATION) == (2, round_up(10), round_up(9), 11)


def test_a_task_with_one_answer_per_row_trains_no_tokens() -> None:
    classes = rows({"input_ids": [4] * 3, "targets": [1]}, {"input_ids": [4] * 4, "targets": [0]})
    assert bound(classes, [one_per_row([0, 1])], CLASSIFICATION) == (2, round_up(4), 0, 0)
