"""The CPU is looked up once a process, however many optimizers DeepSpeed makes on the host."""

from __future__ import annotations

from typing import Any

import cpuinfo
import pytest
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam

from apt_ds.runtime.zero.processor import remember_cpu


def test_optimizers_share_one_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up, original = [], cpuinfo.get_cpu_info

    def look_up() -> dict[str, Any]:
        looked_up.append(True)
        return original()

    monkeypatch.setattr(cpuinfo, "get_cpu_info", look_up)
    for _ in range(2):
        remember_cpu()
        DeepSpeedCPUAdam([torch.nn.Parameter(torch.ones(4))])
    assert len(looked_up) == 1
