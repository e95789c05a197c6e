"""What a process sets before CUDA and the process group start."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from deepspeed.accelerator import get_accelerator

from apt_ds.config.errors import UserError
from apt_ds.runtime import collectives
from apt_ds.runtime.zero import environment, world
from apt_ds.runtime.zero.environment import ALLOCATOR, NCCL_WATCHDOG, allocator_settings, device_index, missing_gpu

HEADERS = Path(torch.__file__).parent / "include"


class Gpu:
    """Stands for DeepSpeed's CUDA accelerator with `visible` devices; `taken`: what was made the current device."""

    def __init__(self, visible: int) -> None:
        self.visible = visible
        self.taken: list[int] = []

    def device_name(self) -> str:
        return "cuda"

    def device_count(self) -> int:
        return self.visible

    def set_device(self, index: int) -> None:
        self.taken.append(index)


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No variable that these tests are about is set, and none stays."""
    names = (*environment.CHANGED, *ALLOCATOR, "LOCAL_RANK", "DS_ACCELERATOR", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
    for name in (*names, environment.OMPI_LOCAL_RANK):
        # so that what is set in between is undone too
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("local_rank", "visible", "index"), [(0, 8, 0), (7, 8, 7), (3, 1, 0), (0, 1, 0), (5, 2, 1), (9, 4, 1)]
)
def test_the_device_is_among_those_that_are_seen(local_rank: int, visible: int, index: int) -> None:
    assert device_index(local_rank, visible) == index


def test_a_task_that_sees_its_one_gpu_takes_it_and_keeps_its_rank(clean: pytest.MonkeyPatch) -> None:
    gpu = Gpu(1)
    clean.setattr(environment, "get_accelerator", lambda: gpu)
    clean.setenv("LOCAL_RANK", "3")
    clean.setenv(environment.OMPI_LOCAL_RANK, "3")
    for _ in range(2):
        environment.take_device()
        # DeepSpeed takes the device from LOCAL_RANK; who works for its node is decided by the rank there
        assert os.environ["LOCAL_RANK"] == os.environ[environment.OMPI_LOCAL_RANK] == "0"
        assert collectives.local_rank() == 3
    assert gpu.taken == [0, 0]


def test_where_all_gpus_are_seen_the_environment_stays(clean: pytest.MonkeyPatch) -> None:
    gpu = Gpu(4)
    clean.setattr(environment, "get_accelerator", lambda: gpu)
    clean.setenv("LOCAL_RANK", "3")
    environment.take_device()
    assert gpu.taken == [3] and os.environ["LOCAL_RANK"] == "3" and collectives.NODE_RANK not in os.environ


@pytest.mark.parametrize(
    ("variables", "visible", "names"),
    [
        ({"DS_ACCELERATOR": "cuda"}, 0, "DS_ACCELERATOR=cuda"),
        ({"SLURM_STEP_GPUS": "2", "CUDA_VISIBLE_DEVICES": ""}, 0, "SLURM_STEP_GPUS=2"),
        ({"SLURM_JOB_GPUS": "0,1"}, 0, "SLURM_JOB_GPUS=0,1"),
        ({"DS_ACCELERATOR": "cuda"}, 1, ""),
        ({"SLURM_STEP_GPUS": "2"}, 1, ""),
        ({"SLURM_STEP_GPUS": "2", "DS_ACCELERATOR": "cpu"}, 0, ""),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 0, ""),  # the deepspeed launcher sets it on the CPU too
        ({}, 0, ""),
    ],
)
def test_a_gpu_that_is_asked_for_and_not_seen_is_named(variables: dict[str, str], visible: int, names: str) -> None:
    line = missing_gpu(variables, visible)
    assert bool(line) == bool(names)
    if names:
        assert line.startswith(f"{names} asks for a GPU") and "DS_ACCELERATOR=cpu" in line


def test_no_gpu_ends_a_process_before_it_joins_the_others(clean: pytest.MonkeyPatch) -> None:
    clean.setattr(environment, "get_accelerator", lambda: Gpu(0))
    clean.setenv("DS_ACCELERATOR", "cuda")
    clean.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match="asks for a GPU"):
        environment.prepare(watched=True)


@pytest.mark.parametrize("name", ALLOCATOR)
def test_the_users_settings_of_the_allocator_stay(name: str) -> None:
    assert allocator_settings({name: "max_split_size_mb:512"}) == {}
    assert allocator_settings({"OTHER": "1"}) == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


@pytest.mark.parametrize("watched", [True, False])
def test_all_is_set_before_the_group_is_made(watched: bool, clean: pytest.MonkeyPatch) -> None:
    variables: dict[str, str] = {}
    gpu = Gpu(1)

    class MadeError(Exception):
        """The group would be made now."""

    def make(verbose: bool, timeout: timedelta) -> None:
        assert not torch.cuda.is_initialized() and gpu.taken == [0]
        variables.update(os.environ)
        raise MadeError

    clean.setattr(environment, "get_accelerator", lambda: gpu)
    clean.setattr(collectives, "ready", lambda: False)
    clean.setattr(world.deepspeed, "init_distributed", make)
    clean.setenv("RANK", "1")
    clean.setenv("LOCAL_RANK", "1")
    # torchrun's default, which nobody has asked for
    clean.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    with pytest.raises(MadeError):
        world.init_distributed(600, watched)
    assert variables["PYTORCH_ALLOC_CONF"] == "expandable_segments:True" and variables["LOCAL_RANK"] == "0"
    # without a watchdog of ours NCCL's must end the process
    expected = NCCL_WATCHDOG if watched else {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
    assert {name: variables[name] for name in NCCL_WATCHDOG if name in variables} == expected


def test_the_cpu_needs_none_of_it(clean: pytest.MonkeyPatch) -> None:
    assert get_accelerator().device_name() == "cpu"
    clean.setenv("LOCAL_RANK", "5")
    environment.prepare(watched=False)
    assert not any(name in os.environ for name in environment.CHANGED) and os.environ["LOCAL_RANK"] == "5"


def test_torch_reads_these_names() -> None:
    headers = {
        "torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp": NCCL_WATCHDOG,
        "c10/cuda/CUDAAllocatorConfig.h": ALLOCATOR,
    }
    for header, names in headers.items():
        text = (HEADERS / header).read_text(encoding="utf8")
        assert [name for name in names if f'"{name}"' not in text] == [], header
    # 0 is: leave errors to the program
    nccl = (HEADERS / "torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp").read_text(encoding="utf8")
    assert re.search(r"NoHandling = 0", nccl)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("NCCL error ... Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000"), "GPU"),
        (RuntimeError("anything else"), ""),
    ],
)
def test_two_ranks_on_a_gpu_are_a_mistake(error: RuntimeError, says: str, clean: pytest.MonkeyPatch) -> None:
    def make(verbose: bool, timeout: timedelta) -> None:
        raise error

    clean.setattr(collectives, "ready", lambda: False)
    clean.setattr(world.deepspeed, "init_distributed", make)
    clean.setenv("RANK", "1")
    with pytest.raises(UserError if says else RuntimeError, match=says or "anything else"):
        world.init_distributed()
