"""Processes of tests compute on the CPU unless they ask for a GPU, and the plain reference computes on one device."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from apt_ds.models import loading
from apt_ds.runtime import zero
from apt_ds.training.datasets import read_data
from tests.support import devices, multiprocess, tiny
from tests.support.jobs import run_config
from tests.support.pretended_device import META, OneDevice
from tests.support.reference import Plain


def test_this_process_sees_no_gpu() -> None:
    assert os.environ[devices.VISIBLE] == "" and devices.SAVED in os.environ
    assert not torch.cuda.is_available() and zero.device().type == "cpu"


@pytest.mark.parametrize("visible", ["all", "0,1"])
def test_children_see_gpus_only_if_they_ask(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APT_DS_GPU_TESTS", raising=False)
    monkeypatch.setenv(devices.SAVED, visible)
    plain, asking = multiprocess.environment(), multiprocess.environment(gpu=True)
    assert plain[devices.VISIBLE] == "" and plain["DS_ACCELERATOR"] == "cpu"
    assert asking.get(devices.VISIBLE, "all") == visible and "DS_ACCELERATOR" not in asking
    monkeypatch.setenv("APT_DS_GPU_TESTS", "cpu")
    assert multiprocess.environment(gpu=True)["DS_ACCELERATOR"] == "cpu"


def test_gpus_are_hidden_where_no_test_process_hid_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `python -m tests.support.golden`."""
    for name in (devices.SAVED, "DS_ACCELERATOR", "APT_DS_GPU_TESTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(devices.VISIBLE, "3")
    plain = multiprocess.environment()
    assert plain[devices.VISIBLE] == "" and plain[devices.SAVED] == "3"
    assert devices.with_gpus(plain)[devices.VISIBLE] == "3"


@pytest.mark.dist
def test_ranks_compute_on_the_cpu() -> None:
    assert multiprocess.run(2, "sharding_jobs.devices_seen", {}) == [["", "cpu", "cpu", "gloo"]] * 2


def test_the_reference_is_on_one_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.save_model(tmp_path / "model")
    tiny.save_data(tmp_path / "data.json")
    flags = ["--calibration_steps", "1", "--max_steps", "4", "--sparsity", "0.4", "--align", "4"]
    run = run_config(str(tmp_path), 0, False, flags)
    base = loading.find_base(run.model.model_name_or_path)
    data = read_data(run, base)
    monkeypatch.setattr(zero, "device", lambda: META)
    with OneDevice() as device:
        plain = Plain(run, base, data)
        assert {p.device for p in plain.model.parameters()} == {META}
        plain.step(0, calibrating=True)
        plain.operate(0, plain.pruner.cut_now(plain.model), fresh=True)
        for step in range(2):
            plain.step(step)
        figures: dict[str, Any] = plain.facts
    assert device.reads > 0 and figures["kept"][-1] <= 0.6 and len(figures["losses"]) == 2
