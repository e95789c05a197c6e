"""Libraries stay out of garbage collection, later objects do not."""

from __future__ import annotations

import gc
import weakref

import torch

from apt_ds.runtime.collection import leave_out_libraries


class Ring:
    """An object that only a collection frees."""

    def __init__(self) -> None:
        self.own = self


def test_later_objects_are_collected() -> None:
    before = gc.get_freeze_count()
    leave_out_libraries()
    assert gc.get_freeze_count() >= before and gc.get_freeze_count() > 10_000
    assert not any(o is torch.nn.Module for o in gc.get_objects())
    ring = weakref.ref(Ring())
    gc.collect()
    assert ring() is None
