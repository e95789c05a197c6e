"""The place of a process in its world: its share of the cores."""

from __future__ import annotations

import os

import deepspeed
import pytest
import torch

from apt_ds.runtime import collectives, zero
from apt_ds.runtime.launch_variables import LAUNCHERS, REQUIRED
from apt_ds.runtime.zero.world import threads_of_rank
from tests.support import multiprocess


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


@pytest.mark.parametrize("variables", [{"RANK": " ", "LOCAL_RANK": ""}, {"WORLD_SIZE": "2"}])
def test_without_a_rank_a_process_is_a_world_of_its_own(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*REQUIRED, *LAUNCHERS):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if collectives.ready():
        # an earlier test of this process made a group
        deepspeed.comm.destroy_process_group()
    with zero.temporary_world():
        zero.init_distributed()
        assert collectives.world_size() == 1 and os.environ["RANK"] == "0"
    assert not collectives.ready() and {name: os.environ.get(name) for name in variables} == variables


@pytest.mark.dist
def test_a_group_of_several_without_a_rank_is_refused() -> None:
    texts = multiprocess.run(2, "mistake_jobs.group_without_a_rank", {}, timeout=120)
    assert {text.partition(". ")[0] for text in texts} == {
        "this process is one of a group of 2, and its launcher has set no RANK"
    }
