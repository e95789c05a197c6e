"""Runs on one GPU: equal to plain PyTorch there and on the CPU, and no memory is left by rebuilds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.integration.test_zero import MODES
from tests.support import multiprocess, tiny
from tests.support.devices import SHOW, on_cpu, with_gpus
from tests.support.paths import ROOT

pytestmark = pytest.mark.gpu

# tests of kernels, which need a GPU in the process that runs them
KERNELS = (
    "losses/test_liger",
    "models/test_attention",
    "models/test_packed_attention",
    "models/test_weight_places",
    "eval/test_static_decoding",
)
STAGES = [(2, False), (3, True)]
LOSSES, SCORES = 1e-3, 2e-2  # relative differences of a GPU's kernels in fp32
SAME_BLOCKS = 0.95  # of the kept blocks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("gpu")
    tiny.save_model(place / "model")
    tiny.save_data(place / "data.json")
    return place


def alike(run: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    """The same sizes and, within the tolerances above, the same blocks, losses and scores."""
    assert run["kept"] == expected["kept"]
    shared = set(run["alive"]) & set(expected["alive"])
    assert len(shared) >= SAME_BLOCKS * len(expected["alive"]) > 0
    assert np.allclose(run["losses"], expected["losses"], rtol=LOSSES)
    if run["alive"] == expected["alive"]:
        assert np.allclose(run["scores"], expected["scores"], rtol=SCORES)


def test_kernels_agree_on_the_gpu() -> None:
    """Their tests in a process that sees the GPUs. Without one they are skipped there."""
    files = [str(ROOT / "tests" / f"{name}.py") for name in KERNELS]
    call = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-n", "0", "-p", "no:cacheprovider", *files]
    environment = with_gpus(dict(os.environ)) | {SHOW: "1"}
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    assert (" skipped" if on_cpu() else " passed") in done.stdout.splitlines()[-1], done.stdout


@pytest.mark.parametrize("mode", list(MODES))
def test_every_stage_equals_plain_pytorch(mode: str, folder: Path) -> None:
    given = {"folder": str(folder), "flags": MODES[mode]}
    on_gpu, on_cpu = (multiprocess.run(1, "reference.reference_run", given, gpu=gpu) for gpu in (True, False))
    alike(on_gpu, on_cpu)
    wanted = {"folder": str(folder), "stages": STAGES, "modes": {mode: MODES[mode]}}
    results = multiprocess.run(1, "runs", wanted, gpu=True)
    assert len(results) == len(STAGES)
    for run in results.values():
        alike(run, on_gpu)


def test_rebuilds_leave_no_memory(folder: Path) -> None:
    wanted = {"folder": str(folder), "stages": STAGES, "count": 15}
    for mode, census in multiprocess.run(1, "rebuild_jobs.rebuilds", wanted, gpu=True).items():
        first, last = census[0], census[-1]
        for key in ("engines", "hooks", "reserved", "pinned"):
            assert last[key] <= first[key], (mode, key, [each[key] for each in census])
        assert last["allocated"] <= first["allocated"] + 8192, (mode, [each["allocated"] for each in census])
