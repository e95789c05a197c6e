"""Resuming is never having stopped, bit for bit; on other ranks and stages it is the same run within rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import worlds

pytestmark = pytest.mark.dist

SIZES = ["--align", "4", "--mask_step", "0.25", "--rank", "2", "--adjust_every", "4"]
# gradual: cuts and growth after steps 4 and 8, the last cut after 10; pretuning: growth after 4 and 5
MODES = {
    "gradual": ["--pruning", "gradual", "--structure", "adaptive", "--max_steps", "16", "--sparsity", "0.5", *SIZES],
    "pretuning": ["--calibration_steps", "2", "--max_steps", "10", "--sparsity", "0.4", *SIZES],
}
BEFORE_AT_AFTER = [3, 4, 5, 9]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("checkpoint")
    tiny.save_model(place / "model")
    tiny.save_data(place / "data.json")
    return place


Runs = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def fp32(folder: Path) -> Runs:
    arguments = {"folder": str(folder), "stages": [(2, False), (3, True)], "modes": MODES, "steps": BEFORE_AT_AFTER}
    return worlds.run(2, "resumed", arguments)


@pytest.fixture(scope="module")
def bf16(folder: Path) -> Runs:
    modes = {"gradual bf16": [*MODES["gradual"], "--bf16"]}
    arguments = {"folder": str(folder), "stages": [(2, True), (3, False)], "modes": modes, "steps": BEFORE_AT_AFTER}
    return worlds.run(2, "resumed", arguments)


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_resuming_is_bit_identical_to_never_having_stopped(kind: str, request: pytest.FixtureRequest) -> None:
    found: Runs = request.getfixturevalue(kind)
    assert len(found) == (4 if kind == "fp32" else 2)
    for name, runs in found.items():
        straight = runs["straight"]
        assert straight["rebuilds"] >= 3 and straight["rows"][-1]["kept"] < 0.62, name
        assert straight["rows"][-1]["ranks"]["max"] > 2 and len(runs) == 2 + len(BEFORE_AT_AFTER), name
        for when, run in runs.items():
            differing = [key for key in straight if run[key] != straight[key]]
            assert not differing, (name, when, differing)


def test_other_ranks_and_stages_go_on_alike(folder: Path, fp32: Runs) -> None:
    sources = {str(folder / f"{mode}3o_2" / f"checkpoint-{step}"): flags for mode, flags in MODES.items() for step in [5]}
    for world in (1, 4):
        arguments = {"folder": str(folder), "sources": sources, "stages": [(0, False), (2, False), (3, False)]}
        for name, run in worlds.run(world, "continued", arguments).items():
            straight = fp32["gradual3o_2" if "gradual" in name else "pretuning3o_2"]["straight"]
            assert run["alive"] == straight["alive"] and run["rebuilds"] == straight["rebuilds"], name
            for key in ("kept", "ranks", "step"):
                assert [row[key] for row in run["rows"]] == [row[key] for row in straight["rows"]], (name, key)
            losses, expected = ([row["loss"] for row in found["rows"]] for found in (run, straight))
            assert np.allclose(losses, expected, rtol=1e-5), name
            assert run["held_out"] == pytest.approx(straight["held_out"], rel=1e-5), name
