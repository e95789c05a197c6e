"""What is returned to the system between two engines."""

from __future__ import annotations

import gc

import pytest
import torch

from apt_ds.runtime import memory, zero
from apt_ds.runtime.zero import engine


@pytest.fixture
def freed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked to return memory, in order."""
    order: list[str] = []
    collect = gc.collect
    monkeypatch.setattr(gc, "collect", lambda: order.append("references") or collect())
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: order.append("device"))
    monkeypatch.setattr(torch.accelerator, "empty_host_cache", lambda: order.append("pinned"), raising=False)
    monkeypatch.setattr(engine, "trim_heap", lambda: order.append("heap"))
    return order


def test_a_gpu_returns_pinned_memory_once_nothing_refers_to_it(
    freed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    zero.free_memory()
    assert freed == ["references", "device", "pinned", "heap"]


def test_the_cpu_pins_nothing(freed: list[str]) -> None:
    zero.free_memory()
    assert freed == ["references", "heap"]


def test_a_torch_without_the_public_name(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.delattr(torch.accelerator, "empty_host_cache", raising=False)
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: called.append("private"), raising=False)
    memory.free_pinned()
    assert called == ["private"]


def test_the_installed_torch_has_one_of_the_names() -> None:
    assert hasattr(torch.accelerator, "empty_host_cache") or hasattr(torch._C, "_host_emptyCache")
