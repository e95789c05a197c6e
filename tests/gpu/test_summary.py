"""The verdicts of the check, from figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import losses, memory, summary

TRAIN: dict[str, Any] = {
    "step_seconds": {"lora": 1.0, "dense": 1.04, "cut30": 0.76, "cut50": 0.5},
    "reserved_bytes": {"lora": 100e9, "dense": 101e9, "cut30": 72e9, "cut50": 59e9},
    "peak_memory_bytes": {"lora": 90e9, "dense": 91e9, "cut30": 60e9, "cut50": 50e9},
    "tokens_per_second": {"lora": 4096.0, "dense": 4000.0, "cut30": 5000.0, "cut50": 8000.0},
    "utilisation": {"lora": 0.5, "dense": 0.49, "cut30": 0.45, "cut50": 0.44},
    "rebuild_seconds": {"cut30": 4.0, "cut50": 5.5},
}
SPEEDS = {name: {"eager": 30.0, "captured": speed} for name, speed in (("dense", 100.0), ("cut30", 136.0))}


def write(folder: Path, **figures: Any) -> None:
    for name, content in figures.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf8")


def test_targets_are_met_missed_or_not_measured(tmp_path: Path) -> None:
    assert {row.verdict for row in summary.targets_of(tmp_path)} == {"not measured"}
    write(
        tmp_path,
        train7=TRAIN,
        generate={"batch 1": SPEEDS, "batch 32": SPEEDS | {"cut30": {"eager": 30.0, "captured": 134.0}}},
        bits7={"reserved_bytes": {"dense4": 11 * 2**30}},
        offload13={"step_seconds": {"unscored": 9.0}},
    )
    verdicts = [row.verdict for row in summary.targets_of(tmp_path)]
    assert verdicts == ["met", "MISSED", "met", "met", "MISSED", "met", "MISSED", "MISSED", "met", "MISSED"]
    table = summary.targets_table(summary.targets_of(tmp_path))
    assert "| scoring on: time to LoRA | 1.040 | <= 1.05 | met |" in table
    assert "| 7B in 4 bits: reserved memory | 11.000 GiB | <= 12 GiB | met |" in table


def test_the_table_of_a_benchmark_has_a_row_for_each_variant() -> None:
    rows = summary.training_table(TRAIN).splitlines()
    assert len(rows) == 6 and all(row.count("|") == rows[0].count("|") for row in rows)
    assert rows[4] == "| apt_ds, 30 % cut | 0.760 | 0.760 | 5,000 | 60,000 | 72,000 | 0.720 | 45 % | 4.00 |"


def test_stages_that_ended_otherwise_are_named(tmp_path: Path) -> None:
    (tmp_path / "stages.tsv").write_text("compile\tOK\t3\t9\nmodel\tTIMEOUT\t9\t9\n", encoding="utf8")
    (tmp_path / "model.log").write_text("a\nOK   one\nb\n", encoding="utf8")
    stages = summary.stages_of(tmp_path, ["make", "zero3"])
    assert [(stage.name, stage.state) for stage in stages] == [
        ("compile", "OK"),
        ("model", "TIMEOUT"),
        ("zero3", "MISSING"),
    ]
    assert summary.facts_of(tmp_path, stages[1]) == ["OK   one", "     a", "     OK   one", "     b"]


@pytest.mark.parametrize(("losses_of_cpu", "failed"), [([2.0, 1.0], 0), ([2.0, 1.06], 1)])
def test_losses_are_compared(losses_of_cpu: list[float], failed: int, tmp_path: Path) -> None:
    write(tmp_path, modes_bf16={"a": {"before": 3.0, "losses": [2.0, 1.0]}})
    assert losses.compare(tmp_path, "bf16")[1] == 1  # no figures of the CPU
    write(tmp_path, cpu_bf16={"a": {"before": 3.0, "losses": losses_of_cpu}})
    lines, count = losses.compare(tmp_path, "bf16")
    assert count == failed and len(lines) == 1 and lines[0].startswith("FAIL" if failed else "OK  ")


def test_memory_that_grows_is_a_leak() -> None:
    flat = {"allocated": 10**6, "reserved": 2**21, "pinned": 0}
    assert memory.grown([flat] * 6) == {}
    # a buffer on its way in some rebuilds, and what the first rebuild leaves
    more = flat | {"pinned": 2048}
    assert memory.grown([flat, flat, more, flat, more, more]) == {}
    assert memory.grown([flat | {"reserved": 0}, flat, flat, flat, flat, flat]) == {}
    for kind, count in (("allocated", 1), ("reserved", 2**21), ("pinned", 8)):
        leak = [flat | {kind: flat[kind] + number * count} for number in range(6)]
        assert memory.grown(leak) == {kind: count}
