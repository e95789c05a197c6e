"""The rows of the table that a run ends with."""

from __future__ import annotations

from typing import Any

import pytest

from apt_ds.training.end_table import COST, FASTER, GROUPS, SMALLER, WORSE, columns, render, rows
from apt_ds.training.summary_schema import Summary

BEFORE = {
    "parameters": 1000,
    "parameters_without_embeddings": 800,
    "checkpoint_bytes": 2_000_000,
    "decode_tokens_per_second": 10.0,
    "prefill_tokens_per_second": 100.0,
    "generated_tokens_per_second": 9.0,
    "held_out_loss": 2.0,
    "held_out_perplexity": 7.4,
    "step_seconds": 1.0,
    "peak_memory_bytes": 9_000_000,
    "peak_added_bytes": 4_000_000,
    "peak_reserved_bytes": None,
}


def summary(**after: Any) -> Summary:
    """A summary with these figures after the run."""
    return {"before": BEFORE, "after": BEFORE | after}  # type: ignore[typeddict-item]


def test_rows_answer_in_the_order_in_which_users_ask() -> None:
    table = list(rows(summary()))
    groups = [row.figure.group for row in table]
    assert list(dict.fromkeys(groups)) == list(GROUPS) == [SMALLER, FASTER, WORSE, COST]
    assert groups == sorted(groups, key=GROUPS.index)
    keys = {row.figure.key for row in table}
    # absent figures have no row, and neither have those whose parts have one
    assert not keys & {"corpus_perplexity", "peak_reserved_bytes", "peak_memory_bytes", "generated_tokens_per_second"}


def test_the_ratio_is_of_memory_that_the_run_added() -> None:
    (row,) = [row for row in rows(summary(peak_added_bytes=1_000_000)) if row.figure.key == "peak_added_bytes"]
    assert row.values == (4.0, 1.0) and row.ratio == pytest.approx(0.25) and row.texts() == ["4", "1"]


def test_metrics_of_a_task_are_quality() -> None:
    table = list(rows(summary(score=88.5, matthews=0.25)))
    quality = [row for row in table if row.figure.group == WORSE]
    assert [row.figure.label for row in quality[:2]] == ["score", "matthews"]
    # no score before the run: no ratio
    assert quality[0].values == (None, 88.5) and quality[0].ratio is None and quality[0].texts() == ["", "88.5000"]


def test_the_text_has_a_column_for_each_evaluation() -> None:
    both = summary(held_out_loss=2.5)
    cut: Summary = {**both, "after_cut": {"held_out_loss": 4.0}}  # type: ignore[typeddict-item]
    assert columns(both) == ["before", "after"] and columns(cut) == ["before", "after_cut", "after"]
    (line,) = [line for line in render(cut).splitlines() if "held-out loss" in line]
    assert line.split() == ["held-out", "loss", "2.000", "4.000", "2.500", "1.250"]
    lines = render(both).splitlines()
    assert [line for line in lines if line.endswith(":")] == [f"{group}:" for group in GROUPS]
    assert len({len(line) for line in lines if not line.endswith(":")}) == 1


def test_several_texts_have_a_row_each() -> None:
    texts = {"a.txt": 20.0, "b.txt[50%:]": 30.0}
    both: Any = summary(corpus_perplexity=20.0, corpus_perplexities=texts)
    both["before"] = BEFORE | {"corpus_perplexity": 10.0, "corpus_perplexities": {"a.txt": 10.0, "b.txt[50%:]": 15.0}}
    named = {row.figure.label: row for row in rows(both) if "corpus" in row.figure.key}
    assert list(named) == ["perplexity, a.txt", "perplexity, b.txt[50%:]"]
    assert named["perplexity, b.txt[50%:]"].values == (15.0, 30.0) and named["perplexity, a.txt"].ratio == 2.0
    one = [row.figure.label for row in rows(summary(corpus_perplexity=20.0)) if "corpus" in row.figure.key]
    assert one == ["corpus perplexity"]
