"""The place of a process in its world: its share of the cores."""

from __future__ import annotations

import os

import deepspeed
import pytest
import torch

from apt_ds.runtime import collectives, zero
from apt_ds.runtime.launch_variables import LAUNCHERS
from apt_ds.runtime.zero.world import threads_of_rank


@pytest.mark.parametrize(
    ("environment", "cores", "threads"),
    [
        ({"LOCAL_SIZE": "8"}, 96, 12),  # the deepspeed launcher
        ({"LOCAL_WORLD_SIZE": "8"}, 96, 12),  # torchrun
        ({"LOCAL_WORLD_SIZE": "8"}, 4, 1),
        ({}, 6, 6),
        ({"LOCAL_SIZE": "8", "OMP_NUM_THREADS": "3"}, 96, None),
    ],
)
def test_ranks_share_the_cores_of_their_node(environment: dict[str, str], cores: int, threads: int | None) -> None:
    assert threads_of_rank(environment, cores) == threads


def test_the_share_is_taken_whatever_the_device_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimizer on the host computes with torch's threads, on a machine with GPUs too."""
    for name in ("OMP_NUM_THREADS", *LAUNCHERS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    if collectives.ready():
        # an earlier test of this process made a group
        deepspeed.comm.destroy_process_group()
    before = torch.get_num_threads()
    with zero.temporary_world():
        zero.init_distributed()
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before
