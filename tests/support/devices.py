"""Which device the tests compute on: the CPU, also on a machine with a GPU, unless a test is marked `gpu`.

Tests compare several ranks with one, and runs bit for bit. On one GPU neither is possible. So `hide_gpus` hides the
GPUs from the test process and from all that it starts. A test marked `gpu` starts processes that see the GPUs
(`multiprocess.run(..., gpu=True)`).

`APT_DS_GPU_TESTS=cpu` runs the tests marked `gpu` on the CPU, to try their code without a GPU. `APT_DS_SHOW_GPUS=1`
lets the test process itself see the GPUs, for tests of kernels: `gpu/test_on_gpu.py` sets it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

VISIBLE = "CUDA_VISIBLE_DEVICES"
# what `VISIBLE` was before `hide_gpus`, for the processes of tests marked gpu
SAVED = "APT_DS_VISIBLE_GPUS"
ALL = "all"
SHOW = "APT_DS_SHOW_GPUS"
ON_CPU = {VISIBLE: "", "DS_ACCELERATOR": "cpu"}
COUNT = "import torch; print(torch.cuda.device_count())"


def hide_gpus() -> None:
    """Hide the GPUs from this process and its children. Call it before torch is imported."""
    if os.environ.get(SHOW) == "1":
        return
    os.environ.setdefault(SAVED, os.environ.get(VISIBLE, ALL))
    os.environ.update(ON_CPU)


def without_gpus(environment: dict[str, str]) -> dict[str, str]:
    """An environment in which neither torch nor DeepSpeed finds a GPU."""
    return environment | {SAVED: environment.get(SAVED, environment.get(VISIBLE, ALL))} | ON_CPU


def with_gpus(environment: dict[str, str]) -> dict[str, str]:
    """An environment with the GPUs that the test process was started with. On the CPU if the tests ask for that."""
    if on_cpu():
        return without_gpus(environment)
    visible = environment.get(SAVED, environment.get(VISIBLE, ALL))
    bare = {name: value for name, value in environment.items() if name not in ON_CPU}
    return bare if visible == ALL else bare | {VISIBLE: visible}


def on_cpu() -> bool:
    """Whether tests marked `gpu` run on the CPU."""
    return os.environ.get("APT_DS_GPU_TESTS") == "cpu"


@cache
def gpus() -> int:
    """Number of GPUs for tests marked `gpu`. Another process counts them, since this one must not see them."""
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return 0
    done = subprocess.run(
        [sys.executable, "-c", COUNT], env=with_gpus(dict(os.environ)), capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def gpu_bytes() -> dict[str, int]:
    """Bytes of tensors on the GPU, bytes that torch has reserved there, and pinned bytes of the host. 0 without one."""
    import torch

    if not torch.cuda.is_available():
        return dict.fromkeys(("allocated", "reserved", "pinned"), 0)
    pinned = torch.cuda.host_memory_stats().get("allocated_bytes.current", 0)
    return {"allocated": torch.cuda.memory_allocated(), "reserved": torch.cuda.memory_reserved(), "pinned": pinned}
