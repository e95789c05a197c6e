"""Gradients that an engine offloads are read only once their copies have arrived."""

from __future__ import annotations

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from torch import nn

from apt_ds.runtime import zero
from apt_ds.runtime.zero import gradients

pytestmark = pytest.mark.usefixtures("joined")


def trained(stage: int, offload: bool) -> zero.Engine:
    """An engine on two small layers, after the backward of a boundary."""
    section: dict[str, object] = {"stage": stage}
    if offload:
        section["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    config = {"train_batch_size": 1, "train_micro_batch_size_per_gpu": 1, "zero_optimization": section}
    optimizer = {"type": "AdamW", "params": {"lr": 1e-3} | ({} if offload else {"torch_adam": True})}
    torch.manual_seed(0)
    engine = zero.build(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), config | {"optimizer": optimizer})
    engine.backward(engine(torch.ones(1, 4)).square().sum())
    return engine


def on_cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the engine's device be a GPU as far as `gradients` knows. Returns what asks it to synchronise."""
    asked: list[str] = []
    monkeypatch.setattr(gradients, "device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(get_accelerator(), "synchronize", lambda *_: asked.append("synchronize"))
    return asked


@pytest.mark.parametrize(("stage", "offload"), [(2, True), (3, True), (2, False), (3, False), (0, False)])
def test_only_offloaded_gradients_of_a_gpu_wait(stage: int, offload: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = trained(stage, offload)
    parameters = [p for p in engine.module.parameters() if p.dim() == 2]
    expected = zero.weight_times_gradient(engine, parameters)
    asked = on_cuda(monkeypatch)
    assert torch.equal(zero.weight_times_gradient(engine, parameters), expected)
    assert asked == ["synchronize"] * offload
    zero.full_gradient(engine, parameters[0])
    assert asked == ["synchronize"] * 2 * offload
    zero.destroy(engine)


def test_on_the_cpu_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = trained(2, True)
    asked: list[str] = []
    monkeypatch.setattr(get_accelerator(), "synchronize", lambda *_: asked.append("synchronize"))
    zero.weight_times_gradient(engine, list(engine.module.parameters()))
    assert asked == []
    zero.destroy(engine)


def test_a_copy_under_way_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's buffer has its values only once the device was waited for, as with a copy to pinned memory."""
    engine = trained(2, True)
    parameters = list(engine.module.parameters())
    expected = zero.weight_times_gradient(engine, parameters)
    weight_gradient = zero.full_gradient(engine, parameters[0])
    (buffer,) = (flat.grad for flat in engine.optimizer.single_partition_of_fp32_groups)
    arriving = buffer.clone()
    monkeypatch.setattr(gradients, "device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(get_accelerator(), "synchronize", lambda *_: buffer.copy_(arriving))
    assert expected.abs().min() > 0
    buffer.zero_()
    assert torch.equal(zero.weight_times_gradient(engine, parameters), expected)
    buffer.zero_()
    assert torch.equal(zero.full_gradient(engine, parameters[0]), weight_gradient)
    zero.destroy(engine)
