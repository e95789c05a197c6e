"""A micro-batch never makes the host wait for the device: nothing of what is computed there is looked up.

On the CPU both are one memory, so that it shows only by what is done: whatever comes of a weight, or of a batch once it
has been sent, counts as the device's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from apt_ds.config.resolve import resolve
from apt_ds.data.batching import Batch, collate
from apt_ds.data.packing import pack
from apt_ds.losses.training_loss import TrainingLoss
from apt_ds.models.adapter import attach
from apt_ds.models.architectures import anatomy_of
from apt_ds.pruning.masks import Masks
from apt_ds.pruning.salience import Salience
from tests.support import tiny
from tests.support.paths import ROOT

CPU = torch.device("cpu")
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal", "item"}


class Device(TorchDispatchMode):
    """Follows what comes of given tensors; `waited`: what looked up their content."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.held = {tensor.untyped_storage()._cdata: tensor for tensor in known}
        self.waited: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        result = func(*args, **(kwargs or {}))
        if any(tensor.untyped_storage()._cdata in self.held for tensor in given):
            name = func.overloadpacket.__name__
            masks = name in ("index", "index_put_") and any(t.dtype == torch.bool for t in given[1:])
            if name in WAITING or masks:
                self.waited.append(name)
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    # kept alive: an address is not used again
                    self.held[leaf.untyped_storage()._cdata] = leaf
        return result


def sent(batch: Batch) -> Batch:
    """What is on the device is another tensor than the host's."""
    moved = {name: value.clone() if isinstance(value, Tensor) else value for name, value in vars(batch).items()}
    return Batch(**(moved | {"labels": batch.labels}))


ROWS = [{"input_ids": [5 + i] * (6 + i), "labels": [-100, *([7 + i] * (5 + i))]} for i in range(3)]
WRITTEN = [{"input_ids": [5 + i] * (6 + i), "labels": [7 + i] * (2 + i)} for i in range(3)]
CLASSES = [{"input_ids": [5 + i] * (6 + i), "targets": [i % 2]} for i in range(3)]


@contextmanager
def followed(salience: Salience, model: torch.nn.Module, batch: Batch) -> Iterator[Device]:
    """Weights, a sent batch and the scorer's sums are the device's, and so is what the scorer sends there."""
    tensors = [value for value in vars(batch).values() if isinstance(value, Tensor) and value is not batch.labels]
    device = Device([*model.parameters(), *model.buffers(), *tensors, salience.abs_sums, salience.owner])

    def following(tensor: Tensor) -> Tensor:
        moved = tensor.clone()
        device.held[moved.untyped_storage()._cdata] = moved
        return moved

    salience.sent = following
    with device:
        yield device


@pytest.mark.parametrize("product", ["per_example", "batch"])
@pytest.mark.parametrize("case", ["causal", "packed", "varlen", "t5", "bert-classes"])
def test_a_scored_micro_batch_does_not_wait(case: str, product: str) -> None:
    kernels = {"causal": "eager", "packed": "eager", "varlen": "varlen"}
    model = tiny.model(attn_implementation=kernels[case]) if case in kernels else tiny.small(case)
    kind = tiny.TASKS.get(case, tiny.LANGUAGE_MODEL)
    anatomy = anatomy_of(model.config, kind)
    attach(model, anatomy, ("q", "v"), rank=2, seed=1)
    rows = {"t5": WRITTEN, "bert-classes": CLASSES}.get(case, ROWS)
    host_batch = pack(rows, 0, 64, case == "varlen") if case in ("packed", "varlen") else collate(rows, 0)
    run = resolve(["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--pruning", "gradual"])
    training_loss, masks = (
        TrainingLoss(run.replace(packing=host_batch.starts is not None), kind, anatomy, 10, CPU),
        Masks(anatomy),
    )
    masks.install(model.train())
    masks.set(masks.values * 0.5)
    salience = Salience(anatomy, 0.85, "off", 1.0, CPU, product)
    salience.lean = True
    salience.install(model)
    training_loss.begin(0, rows)
    batch = sent(host_batch)
    with followed(salience, model, batch) as device:
        salience.begin(
            host_batch.attention_mask,
            torch.float32,
            0,
            training_loss.task_loss.decoder_mask(host_batch),
            host_batch.position_ids,
        )
        loss, _ = training_loss.micro_batch_loss(model, batch, masks)
        loss.backward()
        salience.end()
    assert salience.abs_sums.abs().sum() > 0
    assert device.waited == []


def test_what_waits_is_seen() -> None:
    weight, host = torch.ones(4), torch.ones(4)
    with Device([weight]) as device:
        host.nonzero(), host[host > 0], float(host.sum())
        assert device.waited == []
        product = (weight * 2).view(2, 2)
        product.nonzero(), product[product > 0], float(product.sum())
    assert device.waited == ["nonzero", "index", "_local_scalar_dense"]
