"""Transformer layers that ZeRO stage 3 gathers at once."""

from __future__ import annotations

import pytest
import torch
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from torch import nn

from apt_ds.models import adapter
from apt_ds.models.architectures import anatomy_of
from apt_ds.runtime import zero
from tests.support import tiny

pytestmark = pytest.mark.usefixtures("joined")

CONFIG = {
    "train_batch_size": 1,
    "train_micro_batch_size_per_gpu": 1,
    "gradient_clipping": 1e9,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
}


def student() -> nn.Module:
    model = tiny.model()
    adapter.attach(model, anatomy_of(model.config), ("q", "v"), 4, 0)
    return model.train()


def test_layers_of_every_stack_are_found() -> None:
    model = tiny.model()
    (stack,) = zero.layer_stacks(model)
    assert [layer for _, layer in stack] == list(model.model.layers)
    assert [path for path, _ in stack] == [f"model.layers.{i}" for i in range(len(model.model.layers))]
    assert zero.layer_stacks(nn.Linear(2, 2)) == []


def test_a_layer_is_gathered_at_once_and_trains_as_without_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    original = PartitionedParameterCoordinator.fetch_sub_module

    def fetch(self: PartitionedParameterCoordinator, module: nn.Module, forward: bool) -> None:
        fetched.append(type(module).__name__)
        original(self, module, forward)

    monkeypatch.setattr(PartitionedParameterCoordinator, "fetch_sub_module", fetch)
    ids = tiny.ids(2, 8)
    plain, losses = student(), []
    optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=1e-2)
    engine = zero.build(student(), CONFIG)
    for _ in range(3):
        expected = plain(input_ids=ids, labels=ids).loss
        expected.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        zero.step(engine)
        losses.append((loss.item(), expected.item()))
    assert all(own == pytest.approx(wanted, rel=1e-5) for own, wanted in losses)
    assert losses[-1][0] < losses[0][0]
    layers = len(engine.module.model.layers)
    # forward and backward of each layer in each step, and nothing inside it
    assert fetched.count("LlamaDecoderLayer") == 3 * 2 * layers
    assert not {"AptLinear", "LlamaAttention", "LlamaMLP"} & set(fetched)
    model = zero.destroy(engine)
    first = model.model.layers[0]
    assert not first._forward_pre_hooks and not first._backward_hooks
    assert not any("ds_z3_leaf_module" in vars(parameter) for parameter in model.parameters())


@pytest.mark.parametrize("given", ["auto", 7])
def test_the_largest_layer_is_prefetched_unless_the_file_says_another_size(given: str | int) -> None:
    config = CONFIG | {"zero_optimization": CONFIG["zero_optimization"] | {"stage3_prefetch_bucket_size": given}}
    model = student()
    largest = max(sum(p.numel() for p in layer.parameters()) for layer in model.model.layers)
    engine = zero.build(model, config)
    assert engine.zero_prefetch_bucket_size() == (largest if given == "auto" else given)
    model = zero.destroy(engine)
    engine = zero.build_for_inference(model, {name: part for name, part in config.items() if name != "optimizer"})
    assert engine.zero_prefetch_bucket_size() == (largest if given == "auto" else given)
    zero.destroy(engine)


def test_modules_are_gathered_by_themselves_on_demand() -> None:
    engine = zero.build(student(), CONFIG, gather_layers=False)
    assert not any(getattr(module, "_z3_leaf", False) for module in engine.module.modules())
    zero.destroy(engine)
