"""The rows of a comparison: means, ratios and gaps."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from apt_ds.analysis.compare_table import Trial, normalize, put, tabulate
from apt_ds.analysis.result_table import markdown, notes, publish
from apt_ds.training.meter import Meter


def test_rows_are_means_over_seeds_and_ratios_to_lora() -> None:
    lora = {"method": "lora", "removed": 0.0, "whole_seconds": 20.0, "whole_bytes": 100, "step_seconds": 2.0}
    apt = {"method": "apt", "removed": 0.3, "whole_seconds": 22.0, "whole_bytes": 110, "step_seconds": 1.5}
    lora |= {"final_bytes": 100, "decode_tokens_per_second": 10.0, "inference_batch_tokens_per_second": 50.0}
    apt |= {"final_bytes": 80, "decode_tokens_per_second": 13.0, "inference_batch_tokens_per_second": 60.0}
    put(apt, "perplexity", [10.0, 14.0])
    put(lora, "perplexity", [10.0, 10.0])
    put(apt, "mmlu", [None, 0.3])
    normalize([apt, lora], [[], []])
    assert (apt["train_time"], apt["train_memory"]) == (1.1, 1.1)
    assert (apt["final_step_time"], apt["final_memory"]) == (0.75, 0.8)
    assert (apt["inference_speed"], apt["batch_speed"], apt["relative_perplexity"]) == (1.3, 1.2, 1.2)
    assert (apt["perplexity"], apt["mmlu"], apt["inference_memory"]) == (12.0, None, None)
    for row in (apt, lora):
        row["inference_batch_size"] = 32
    lines = markdown([apt, lora]).splitlines()
    assert lines[0].strip("| ").split(" | ") == [
        *("method", "parameters removed, %", "perplexity", "perplexity, % of lora", "training time, % of lora"),
        *("peak training memory, % of lora", "step at final size, % of lora", "peak memory at final size, % of lora"),
        *("inference speed, times lora", "inference speed at batch 32, times lora"),
    ]
    assert lines[2] == "| apt | 30.0 | 12.0 ± 2.8 | 120.0 | 110.0 | 110.0 | 75.0 | 80.0 | 1.30 | 1.20 |"
    assert "100 % is `lora`, LoRA without pruning: training time, s 20.0;" in notes([apt, lora])
    assert "at batch 32, tokens/s 50.0" in notes([apt, lora])


def test_relative_quality_is_that_of_the_task() -> None:
    """A score relative to full fine-tuning, MMLU to LoRA; nothing is relative to a score of 0 or below."""
    rows = [{"method": "full", "dev_score": 80.0}, {"method": "apt", "dev_score": 60.0}, {"method": "lora"}]
    normalize(rows, [[], [], []])
    assert [row["relative_score"] for row in rows] == [1.0, 0.75, None]
    for row in rows:
        row |= {"removed": 0.0, "metric": "accuracy"}
    lines = markdown(rows).splitlines()
    assert lines[0].endswith("| accuracy, % | relative accuracy, % of full |")
    assert lines[3] == "| apt | 0.0 | 60.0 | 75.0 |" and lines[4] == "| lora | 0.0 | - | - |"
    rows = [{"method": "full", "dev_score": -3.0}, {"method": "apt", "dev_score": 60.0}]
    normalize(rows, [[[{"score": -3.0, "pruned": True, "seconds": 1.0, "step": 1}]], [[]]])
    assert [row["relative_score"] for row in rows] == [None, None]
    rows = [{"method": "full", "mmlu": 0.2}, {"method": "lora", "mmlu": 0.4}]
    normalize(rows, [[], []])
    assert [row["relative_score"] for row in rows] == [0.5, 1.0]


def summary(kept: float, step: float | None, peak: int | None, score: float) -> dict[str, Any]:
    """What a run of a task leaves in summary.json, as far as the table reads it."""
    meter = Meter(torch.device("cpu"))
    meter.step(0.5, dense=True)
    after = {"score": score, "exact": score - 10, "best_exact": score - 9, "best_f1": score + 1}
    after |= {"step_seconds": step, "peak_memory_bytes": peak}
    return {"pruning": {"kept": kept}, "training": meter.whole() | {"history": []}, "after": after}


def test_a_cut_at_the_last_step_leaves_a_table_with_gaps(tmp_path: Path) -> None:
    """No step came after the cut, nothing was evaluated on the way: `-`, null and empty cells, no picture of them."""
    runs = {"full": summary(1.0, 0.5, 10**9, 80.0), "apt": summary(0.4, None, None, 76.0)}
    trials = [Trial(method, 1 - run["pruning"]["kept"], 1, tmp_path / method) for method, run in runs.items()]
    for trial, run in zip(trials, runs.values(), strict=True):
        trial.folder.mkdir()
        (trial.folder / "summary.json").write_text(json.dumps(run), encoding="utf8")
    for rows in (tabulate(trials, {}, {"metric": "F1"}), tabulate(trials[::-1], {}, {"metric": "F1"})[::-1]):
        assert [row["final_step_time"] for row in rows] == [1.0, None]
        assert rows[0].keys() == rows[1].keys() and rows[1]["train_time"] == pytest.approx(1.0)
    publish(rows, tmp_path)
    table = json.loads((tmp_path / "table.json").read_text(encoding="utf8"))
    assert table[1]["step_seconds"] is None and table[1]["relative_score"] == 0.95
    with (tmp_path / "table.csv").open(encoding="utf8") as file:
        assert [row["final_step_time"] for row in csv.DictReader(file)] == ["1.0", ""]
    lines = (tmp_path / "table.md").read_text(encoding="utf8").splitlines()
    heads, cells = (line.strip("| ").split(" | ") for line in (lines[0], lines[3]))
    shown = dict(zip(heads, cells, strict=True))
    assert shown["step at final size, % of full"] == "-"
    names = ("F1, %", "F1 at its best threshold, %", "exact match, %", "exact match at its best threshold, %")
    assert [shown[name] for name in names] == ["76.0", "77.0", "66.0", "67.0"]
    assert shown["relative F1, % of full"] == "95.0"
    assert not (tmp_path / "table.png").exists()
    # without the reference all figures stand for themselves, the other way round the reference has the gap
    alone = markdown(tabulate(trials[1:], {})).splitlines()
    assert "training time, s" in alone[0] and "% of" not in alone[0]
    (trials[0].folder / "summary.json").write_text(json.dumps(summary(1.0, None, None, 0.0)), encoding="utf8")
    assert [row["final_step_time"] for row in tabulate(trials, {})] == [None, None]
