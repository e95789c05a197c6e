"""Which parameters of a model are trained: all of them, or adapters and the layers of the task's answer."""

from __future__ import annotations

from torch import nn

from apt_ds.config.run_config import RunConfig
from apt_ds.models import adapter, task_heads
from apt_ds.models.blocks import Anatomy


def attach_trainables(model: nn.Module, anatomy: Anatomy, run: RunConfig, rank: int, all_weights: bool) -> None:
    """Decide what a run trains, in place. The weights may be partitioned.

    Args:
        model: has no adapters.
        anatomy: its blocks.
        run: the options, of which the adapter targets and the seed count.
        rank: the rank of every adapter.
        all_weights: whether every weight is trained. The model then gets no adapters.
    """
    if all_weights:
        model.requires_grad_(True)
    else:
        adapter.attach(model, anatomy, run.targets, rank, run.optim.seed)
        task_heads.attach(model, anatomy)
