"""Gradual pruning that starts later: --pruning_start. Before its phase a run only tunes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from tests.support import tiny
from tests.support.launcher import Place, Run
from tests.support.paths import ROOT

WAIT = 3
FLAGS = [
    *["--pruning", "gradual", "--structure", "adaptive", "--mask_step", "0.5", "--sparsity", "0.4", "--align", "4"],
    *["--max_steps", "10", "--prune_every", "2", "--pruning_phase", "0.4", "--rank", "2", "--learning_rate", "1e-2"],
    *["--save_steps", "2", "--run_report", "false", "--report", "false", "--per_device_train_batch_size", "4"],
]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    words = tiny.save_task(tmp_path_factory.mktemp("task"), "bert-classes")
    return ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), *words, *FLAGS]


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text("utf-8").splitlines()]


def done(run: Run, words: list[str], output: Path, *more: str) -> dict[str, Any]:
    ended = run([*words, "--output_dir", str(output), *more])
    assert ended.status == 0, ended.err
    summary: dict[str, Any] = json.loads((output / "summary.json").read_text("utf-8"))
    return summary


def test_the_task_is_learnt_before_anything_is_pruned(task: list[str], tmp_path: Path, run: Run) -> None:
    late = ["--distill", "--pruning_start", "0.3"]
    summary = done(run, task, tmp_path / "late", *late)
    rows = lines(tmp_path / "late")
    assert [row["step"] for row in rows] == list(range(1, 11))
    # step 3 is the last of the wait
    assert [row["target"] == 1.0 for row in rows] == [number < WAIT for number in range(10)]
    assert summary["pruning"]["kept"] <= 0.6 and max(summary["pruning"]["ranks"].values()) > 2
    # the teacher is renewed as its phase begins, and at every adjustment
    assert [point["step"] for point in summary["training"]["history"]] == [WAIT, 4, 6, 7]
    # the wait is tuning alone
    done(run, task, tmp_path / "tuned", "--pruning", "none", "--rank_growth", "none")
    assert [row["loss"] for row in rows[:WAIT]] == [row["loss"] for row in lines(tmp_path / "tuned")[:WAIT]]
    # a resumed run is the same run, from a step of the wait and from one of the phase
    for step in (2, 4):
        again = done(
            run, task, tmp_path / "late", *late, "--resume_from_checkpoint", str(tmp_path / f"late/checkpoint-{step}")
        )
        assert again["after"]["held_out_loss"] == summary["after"]["held_out_loss"]
        assert again["pruning"]["ranks"] == summary["pruning"]["ranks"]
        assert [row["loss"] for row in lines(tmp_path / "late")] == [row["loss"] for row in rows]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--pruning_start", "0.6"], ""),
        (["--pruning_start", "0.7"], "--pruning_start 0.7 and --pruning_phase 0.4 exceed the run. Give at most 1"),
        (["--pruning_start", "0.7", "--pruning", "pretuning"], ""),
        (["--pruning_start", "1"], "--pruning_start 1.0 is not allowed: give at least 0 and below 1"),
    ],
)
def test_start_and_phase_fit_into_the_run(place: Place, flags: list[str], problem: str) -> None:
    words = place.words(place.folder / "none", *FLAGS, *flags)
    if not problem:
        resolve(words)
        return
    with pytest.raises(UserError) as caught:
        resolve(words)
    assert problem in str(caught.value)
