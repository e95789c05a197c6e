"""The clock asks a GPU to finish its work before it looks."""

from __future__ import annotations

import time

import pytest
import torch

from apt_ds.runtime.clock import seconds_after


def test_a_gpu_is_waited_for_before_the_look(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[torch.device, float]] = []

    def synchronize(device: torch.device) -> None:
        time.sleep(0.01)
        asked.append((device, time.perf_counter()))

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    seen = seconds_after(torch.device("cuda:1"))
    assert [device for device, _ in asked] == [torch.device("cuda:1")] and seen >= asked[0][1]


def test_without_a_gpu_it_is_the_clock_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: pytest.fail("there is no GPU"))
    before = time.perf_counter()
    assert before <= seconds_after(torch.device("cpu")) <= time.perf_counter()
