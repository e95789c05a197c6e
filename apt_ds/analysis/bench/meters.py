"""Peak arithmetic of a device, and its energy."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from apt_ds.runtime import zero
from apt_ds.runtime.clock import seconds_after

RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")
SIDES = {"cpu": 1536, "cuda": 8192}
REPEATS = 5


def peak_flops(dtype: torch.dtype) -> float:
    """Operations per second of the fastest of a few large square matrix products on this device."""
    device = zero.device()
    side = SIDES[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(REPEATS):
        start = now()
        _ = a @ b
        seconds.append(now() - start)
    return 2 * side**3 / min(seconds)


def reserved_bytes() -> int:
    """Peak bytes that the allocator of a GPU has reserved since `reset_peak`. 0 on the CPU."""
    return torch.cuda.max_memory_reserved(zero.device()) if zero.device().type == "cuda" else 0


def process_bytes() -> int:
    """Bytes of this process without a model: its resident set on the CPU, 0 on a GPU."""
    return psutil.Process().memory_info().rss if zero.device().type == "cpu" else 0


def now() -> float:
    """Seconds, after the device has finished all its work."""
    return seconds_after(zero.device())


def energy_counter() -> Callable[[], float] | None:
    """A function that returns the joules that this device has used so far. None where it does not report them.

    NVML (pynvml) reports them for a GPU. RAPL reports them for the socket of a CPU, with all that runs on it.
    """
    return _nvml() if zero.device().type == "cuda" else _rapl()


def _nvml() -> Callable[[], float] | None:
    if importlib.util.find_spec("pynvml") is None:
        return None
    pynvml = importlib.import_module("pynvml")
    try:
        pynvml.nvmlInit()
        # NVML numbers hidden devices too
        name = f"GPU-{torch.cuda.get_device_properties(zero.device()).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(name)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3


def _rapl() -> Callable[[], float] | None:
    try:
        RAPL.read_text(encoding="ascii")
    except OSError:
        return None
    return lambda: int(RAPL.read_text(encoding="ascii")) / 1e6
