"""Runs that learn from the dense model: resumed, on any ranks and stages, with any layout of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apt_ds.data.teacher_cache import IDS, LOG_PROBABILITIES
from tests.support import multiprocess, tiny

pytestmark = pytest.mark.dist

FLAGS = ["--calibration_steps", "2", "--max_steps", "4", "--sparsity", "0.4", "--align", "4", "--rank", "2"]
FLAGS += ["--prune_every", "2", "--distill", "logits", "--distill_top_k", "16", "--distill_temperature", "1.5"]
PACKED = ["--packing", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1"]
Runs = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("teacher")
    tiny.save_model(place / "model")
    tiny.save_data(place / "data.json")
    return place


def cached(folder: Path, name: str) -> list[str]:
    return [*FLAGS, "--teacher_cache", str(folder / name)]


@pytest.fixture(scope="module")
def sharded(folder: Path) -> Runs:
    """Two ranks under ZeRO-3. The first run makes the cache, all others find it."""
    cases = [("sharded", 3, False, cached(folder, "of_two"), [3])]
    return multiprocess.run(2, "resumed", {"folder": str(folder), "cases": cases})["sharded"]


@pytest.fixture(scope="module")
def alone(folder: Path) -> Runs:
    """One rank under ZeRO-2 makes a cache of its own, and packs examples."""
    flags = [*cached(folder, "of_one"), *PACKED]
    arguments = {"folder": str(folder), "name": "alone", "stage": 2, "offload": False, "flags": flags}
    return multiprocess.run(1, "whole", arguments)


def test_resuming_is_bit_identical(sharded: Runs) -> None:
    straight = sharded["straight"]
    assert straight["rebuilds"] >= 1 and straight["rows"][-1]["kept"] < 0.62
    assert all(row["teacher_distance"] > 0 for row in straight["rows"])
    for when, run in sharded.items():
        assert not [key for key in straight if run[key] != straight[key]], when


def test_the_cache_is_the_same_for_any_world(folder: Path, sharded: Runs, alone: Runs) -> None:
    for name in (IDS, LOG_PROBABILITIES):
        assert (folder / "of_two" / name).read_bytes() == (folder / "of_one" / name).read_bytes()


def test_the_run_is_the_same_for_any_world_and_layout(sharded: Runs, alone: Runs) -> None:
    straight = sharded["straight"]
    for figure in ("loss", "teacher_distance"):
        values = [[row[figure] for row in run["rows"]] for run in (straight, alone)]
        assert np.allclose(*values, rtol=5e-5), figure
    assert alone["alive"] == straight["alive"]
    assert alone["held_out"] == pytest.approx(straight["held_out"], rel=5e-5)


def test_a_live_teacher_predicts_what_its_cache_has(folder: Path, sharded: Runs) -> None:
    """On two ranks under ZeRO-3, up to the rounding of the cache to fp16."""
    arguments = {"folder": str(folder), "name": "live", "stage": 3, "offload": False}
    live = multiprocess.run(2, "whole", arguments | {"flags": [*FLAGS, "--teacher_source", "live"]})
    straight = sharded["straight"]
    for figure, tolerance in (("loss", 1e-3), ("teacher_distance", 2e-2)):
        values = [[row[figure] for row in run["rows"]] for run in (straight, live)]
        assert np.allclose(*values, rtol=tolerance), (figure, values)
        assert values[0] != values[1]
    assert live["alive"] == straight["alive"]
