"""The process group of a run: join it, or make one of a single process, and leave it."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import deepspeed
import torch
from deepspeed.utils import logger

from apt_ds.config.errors import UserError
from apt_ds.runtime import collectives, launch_variables
from apt_ds.runtime.zero import environment
from apt_ds.runtime.zero.compilers import extensions_folder
from apt_ds.runtime.zero.engine import destroying_engines, forget_coordinators, free_memory

# what `init_distributed` sets where there is no launcher
ALONE = (
    *("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE"),
    *("ONEDNN_PRIMITIVE_CACHE_CAPACITY", *environment.CHANGED),
)


def init_distributed(timeout: float = 600, watched: bool = False) -> None:
    """Join the process group that the launcher has prepared, or make one of a single process.

    Args:
        timeout: seconds after which the watchdog gives up. A collective waits longer, as the watchdog knows who is
            gone.
        watched: whether the caller will run a `Watchdog`.

    Raises:
        UserError: a variable of the launcher is absent or holds no number, its port is taken, no GPU is visible where
            one is asked for, or two ranks share a GPU.
    """
    logger.setLevel(logging.WARNING)
    # deepspeed calls collectives under names that newer torch renames
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # every rank has taken its device by then (`environment.take_device`)
    warnings.filterwarnings("ignore", message=r"barrier\(\): using the device under current context")
    launch_variables.check_variables()
    if not launch_variables.launched():
        if collectives.ready() and collectives.world_size() > 1:
            raise UserError(
                f"this process is one of a group of {collectives.world_size()}, and its launcher has set no RANK. Set "
                "RANK, LOCAL_RANK and WORLD_SIZE, or start with the deepspeed launcher"
            )
        _be_alone()
    if collectives.is_main():
        warn_of_locks(extensions_folder())
    if not collectives.ready():
        environment.prepare(watched)
    try:
        deepspeed.init_distributed(verbose=False, timeout=timedelta(seconds=4 * timeout + 60))
        environment.take_device()
        _unname_buffers()
    except ModuleNotFoundError as error:
        # DeepSpeed asks MPI where a variable is absent
        if error.name == "mpi4py" and (mistake := launch_variables.absent()):
            raise UserError(mistake) from None
        raise
    except RuntimeError as error:
        if mistake := _mistake(error):
            raise UserError(mistake) from None
        raise
    _share_cpu()


def _mistake(error: RuntimeError) -> str:
    """What to say of an error that the user's command causes while ranks meet, empty for any other."""
    text = str(error)
    if isinstance(error, collectives.BROKEN) and "EADDRINUSE" in text:
        port = os.environ.get("MASTER_PORT")
        return f"port {port} is in use, by another run perhaps: give the launcher another --master_port"
    if "Duplicate GPU detected" in text:
        return "two ranks of a node use the same GPU: start at most as many processes as the node has GPUs"
    return ""


def _share_cpu() -> None:
    """Take this process's share of the node's cores, on a GPU too: an offloaded optimizer computes on the host."""
    # oneDNN keeps 1,024 kernels with their buffers, and every cut makes the old ones useless
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    threads = threads_of_rank(os.environ, os.cpu_count() or 1)
    if threads is not None:
        torch.set_num_threads(threads)


def threads_of_rank(environment: Mapping[str, str], cores: int) -> int | None:
    """CPU threads of one rank: an equal share of the cores. None where OMP_NUM_THREADS decides.

    Args:
        environment: the environment of a process that a launcher may have started.
        cores: cores of the node.
    """
    if "OMP_NUM_THREADS" in environment:
        return None
    local = launch_variables.number(
        "LOCAL_WORLD_SIZE", launch_variables.number("LOCAL_SIZE", 1, environment), environment
    )
    return max(1, cores // max(1, local))


def warn_of_locks(root: Path) -> None:
    """Tell on stderr of compilations under way: whoever killed one would wait for it for ever, not knowing why."""
    for lock in sorted(root.glob("**/lock")):
        print(
            f"{lock}: another process is compiling, or one was killed while it did; should this wait for minutes with "
            "no compiler running, remove that file",
            file=sys.stderr,
            flush=True,
        )


def _unname_buffers() -> None:
    """Take away the name of the shared memory DeepSpeed's CPU collectives use. Collective.

    DeepSpeed never does: 69 MB of memory a rank would outlive every run. Without a name it ends with its last process.
    """
    collectives.barrier()
    place = f"{os.getuid()}_{os.environ.get('MASTER_ADDR')}_{os.environ.get('MASTER_PORT')}_{collectives.rank()}"
    Path("/dev/shm", f"deepspeed_allreduce_buffer_{place}").unlink(missing_ok=True)


def _be_alone() -> None:
    """Set the environment of a single process that no launcher started. DeepSpeed reads it in a caller's group too."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(collectives.free_port())}
    os.environ.update(place, RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_SIZE="1")


@contextmanager
def temporary_world() -> Iterator[None]:
    """Leave no process group behind: `init_distributed` inside has no effect on the process afterwards.

    The exit destroys the process group and the engines that were built inside. It restores environment variables, the
    number of CPU threads and the global state of DeepSpeed. A caller's own group of one process stays. Does nothing in
    a process of a launcher.
    """
    if launch_variables.launched():
        yield
        return
    callers_group = collectives.ready()
    variables = {name: os.environ.get(name) for name in ALONE}
    threads = torch.get_num_threads()
    # an earlier error may have kept an engine alive until now
    free_memory()
    try:
        # a run that fails leaves its own
        with destroying_engines():
            yield
    finally:
        if collectives.ready() and not callers_group:
            deepspeed.comm.destroy_process_group()
        forget_coordinators()
        torch.set_num_threads(threads)
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
