"""Copies that are queued come from pinned memory. The GPU is a fake one: its tensors have no content."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from apt_ds.data.batching import Batch
from apt_ds.models.blocks import HIDDEN
from apt_ds.pruning.masks import Masks
from apt_ds.runtime.transfer import sent
from tests.support import drawn_scores
from tests.support.paths import ROOT

GPU = torch.device("cuda:0")


class Queue(TorchDispatchMode):
    """Carries out pinning, which needs a GPU, as a copy. `copies`: whether the source of each copy was pinned."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned: list[Tensor] = []
        self.copies: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._pin_memory.default:
            self.pinned.append(torch.clone(args[0]))
            return self.pinned[-1]
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") == GPU:
            self.copies.append(any(args[0] is tensor for tensor in self.pinned) and kwargs["non_blocking"])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def queue() -> Any:
    with FakeTensorMode(allow_non_fake_inputs=True), Queue() as watched:
        yield watched


def test_a_tensor_of_the_host_is_pinned_first(queue: Queue) -> None:
    assert sent(torch.zeros(3), GPU).device == GPU
    assert queue.copies == [True]


def test_a_tensor_of_the_device_stays(queue: Queue) -> None:
    on_device = torch.zeros(3, device=GPU)
    assert sent(on_device, GPU) is on_device and not queue.pinned


def test_nothing_is_pinned_without_a_gpu() -> None:
    tensor = torch.zeros(3)
    assert sent(tensor, "cpu") is tensor


def test_a_batch_is_pinned(queue: Queue) -> None:
    ids = torch.zeros(2, 8, dtype=torch.int64)
    moved = Batch(ids, torch.ones_like(ids), torch.zeros_like(ids), position_ids=torch.zeros_like(ids)).to(GPU)
    assert moved.input_ids.device == moved.position_ids.device == GPU  # type: ignore[union-attr]
    assert queue.copies == [True] * 4


def test_masks_of_all_sites_are_one_pinned_copy(queue: Queue) -> None:
    table = drawn_scores.anatomy(neurons=48)
    masks = Masks(table)
    masks.move_towards(np.zeros(table.sizes.total(), dtype=bool), 0.1)
    like = torch.zeros(1, dtype=torch.bfloat16, device=GPU)
    for site in (HIDDEN, *range(len(table.sites))):
        mask = masks.mask_for(site, like, 1)
        assert mask is not None and mask.device == GPU and mask.dtype == torch.bfloat16
    assert queue.copies == [True]


def test_no_other_place_queues_copies() -> None:
    """A copy that is queued elsewhere would need its own proof."""
    files = [path for path in (ROOT / "apt_ds").rglob("*.py") if "non_blocking" in path.read_text(encoding="utf8")]
    assert {path.name for path in files} == {"transfer.py", "batching.py"}
