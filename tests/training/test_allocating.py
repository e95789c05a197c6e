"""How the calibration data is divided for the search of sizes, and runs that search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.losses.task_losses import TASK_LOSSES
from apt_ds.training.allocating import UNIT, divided, part_sizes
from apt_ds.training.pruning_figures import PruningFigures
from tests.support import tiny
from tests.support.launcher import Place, Run
from tests.training.test_summary_schema import mismatches


@pytest.mark.parametrize(
    ("available", "evaluations", "stages", "probes"),
    [
        (10**6, 3000, [UNIT, 8 * UNIT, 64 * UNIT], 3),
        (10**6, 320, [UNIT, 8 * UNIT, 20 * UNIT], 3),
        (10**6, 96, [UNIT, 6 * UNIT], 3),
        (10**6, 20, [UNIT], 3),
        (12 * UNIT, 3000, [UNIT, 8 * UNIT], 3),
        (400, 300, [100, 200], 1),
        (3, 300, [1], 2),
    ],
)
def test_parts_are_as_large_as_data_and_evaluations_allow(
    available: int, evaluations: int, stages: list[int], probes: int
) -> None:
    stage_sizes, probe_sizes = part_sizes(available, evaluations)
    assert stage_sizes == stages and len(probe_sizes) == probes and set(probe_sizes) == {stages[0]}
    assert sum(stage_sizes) + sum(probe_sizes) <= available


def test_parts_share_no_row() -> None:
    rows = [{"input_ids": [n] * 8, "labels": [-100] * 3 + [n] * 5} for n in range(20)]
    parts = divided(rows, [12, 30, 7, 100, 5], TASK_LOSSES[LANGUAGE_MODEL])
    assert [[row["input_ids"][0] for row in part.rows] for part in parts] == [
        [0, 1, 2],
        [3, 4, 5, 6, 7, 8],
        [9, 10],
        list(range(11, 20)),
    ]


def searched(place: Place, output: Path, run: Run, *flags: str) -> dict[str, Any]:
    words = ["--max_steps", "1", "--structure", "adaptive", "--score", "random", "--report", "false"]
    ended = run(place.words(output, *words, "--allocate", "kl", "--allocate_evaluations", "90", *flags))
    assert ended.status == 0, ended.err
    figures = json.loads((output / "summary.json").read_text(encoding="utf8"))["pruning"]
    assert mismatches(figures, PruningFigures) == []
    assert figures["kept"] <= figures["target_kept"] and figures["allocation"]["evaluations"] <= 90
    return figures


def test_a_language_model(place: Place, tmp_path: Path, run: Run) -> None:
    """Random scores tell nothing of layers, so that the search finds better sizes."""
    figures = searched(place, tmp_path / "out", run, "--scale_steps", "8")
    allocation = figures["allocation"]
    assert 0 < allocation["kl_after"] < 0.99 * allocation["kl_before"]
    assert allocation["moves"] > 0 < allocation["accepted"]
    assert all(count % 4 == 0 for count in figures["layers"]["after"]["neurons"])
    scales = figures["scales"]
    assert scales["steps"] == 8 and scales["smallest"] < 1 < scales["largest"]
    assert scales["loss_after"] < scales["loss_before"]


@pytest.mark.parametrize("kind", ["bert-classes", "bert-answers", "t5"])
def test_other_tasks(kind: str, tmp_path: Path, run: Run) -> None:
    words = tiny.save_task(tmp_path / "task", kind)
    words += ["--scale_steps", "1", "--allocate_evaluations", "24"]
    figures = searched(Place(tmp_path), tmp_path / "out", run, *words)
    allocation = figures["allocation"]
    assert 0 < allocation["kl_after"] <= allocation["kl_before"] and figures["scales"]["loss_after"] > 0
