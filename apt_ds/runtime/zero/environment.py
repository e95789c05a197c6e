"""What a process sets before CUDA and the process group start: its device, the allocator, NCCL's own watchdog."""

from __future__ import annotations

import os
from collections.abc import Mapping

from deepspeed.accelerator import get_accelerator

from apt_ds.config.errors import UserError
from apt_ds.runtime import collectives

# torch reads the first; the others are older names of it
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
# NCCL's watchdog in torch aborts the process (status 134, with a C++ trace) where a peer or CUDA fails, and a second
# thread aborts where that watchdog is stuck. `Watchdog` and the main thread find the same, and say it in one line.
NCCL_WATCHDOG = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",
}
OMPI_LOCAL_RANK = "OMPI_COMM_WORLD_LOCAL_RANK"
CHANGED = (ALLOCATOR[0], *NCCL_WATCHDOG, collectives.NODE_RANK)


def prepare(watched: bool) -> None:
    """Set the environment of this process. Before CUDA and the process group start.

    Args:
        watched: whether a `Watchdog` will run. NCCL's own then stays quiet, whatever the launcher has set.

    Raises:
        UserError: the process asks for a GPU and sees none.
    """
    if watched:
        os.environ.update(NCCL_WATCHDOG)
    if on_cuda():
        os.environ.update(allocator_settings(os.environ))
    if problem := missing_gpu(os.environ, get_accelerator().device_count() if on_cuda() else 0):
        raise UserError(problem)
    if "LOCAL_RANK" in os.environ:
        take_device()


def on_cuda() -> bool:
    """Whether DeepSpeed has chosen CUDA."""
    return get_accelerator().device_name() == "cuda"


def allocator_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Settings of the allocator for the environment. None where the user has made some.

    A cut frees weights of many sizes. Segments of a fixed size would each keep a hole. Expandable ones give it back.
    """
    return {} if any(name in environment for name in ALLOCATOR) else {ALLOCATOR[0]: "expandable_segments:True"}


def missing_gpu(environment: Mapping[str, str], visible: int) -> str:
    """What to say where a process asks for a GPU and sees none, else empty.

    Args:
        environment: of the process. DS_ACCELERATOR=cuda, or Slurm's list of this task's GPUs, asks for one.
        visible: how many GPUs the process sees.
    """
    chosen = environment.get("DS_ACCELERATOR", "")
    given = next((name for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS") if environment.get(name)), "")
    by = "DS_ACCELERATOR=cuda" if chosen == "cuda" else f"{given}={environment[given]}" if given and not chosen else ""
    if not by or visible:
        return ""
    shown = f"CUDA_VISIBLE_DEVICES is {environment.get('CUDA_VISIBLE_DEVICES', 'not set')!r}"
    return (
        f"{by} asks for a GPU, and torch sees none ({shown}): look at nvidia-smi, install a torch for CUDA, "
        "or set DS_ACCELERATOR=cpu"
    )


def device_index(local_rank: int, visible: int) -> int:
    """Index of the device of a process among those that it sees.

    A launcher shows every process all devices of its node, or, as Slurm does with --gpus-per-task, its own alone.

    Args:
        local_rank: rank of the process on its node.
        visible: how many devices the process sees, at least 1.
    """
    return local_rank % visible


def take_device() -> None:
    """Make this process's device the current one. DeepSpeed itself does so only when it builds an engine."""
    if get_accelerator().device_name() == "cpu":
        return
    local_rank = collectives.local_rank()
    index = device_index(local_rank, get_accelerator().device_count())
    if index != local_rank:
        # DeepSpeed takes LOCAL_RANK for the index of the device, everywhere
        os.environ.update({collectives.NODE_RANK: str(local_rank), "LOCAL_RANK": str(index)})
        if OMPI_LOCAL_RANK in os.environ:
            os.environ[OMPI_LOCAL_RANK] = str(index)
    get_accelerator().set_device(index)
