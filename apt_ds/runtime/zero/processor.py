"""What DeepSpeed asks about the CPU, looked up once a process."""

from __future__ import annotations

import functools
import importlib
from typing import Any


def remember_cpu() -> None:
    """Let this process look up its CPU only once.

    DeepSpeed's optimizer on the host looks it up whenever it is made, so in every rebuild. Each look-up starts
    processes and takes a second.
    """
    cpuinfo: Any = importlib.import_module("cpuinfo")
    if not hasattr(cpuinfo.get_cpu_info, "cache_info"):
        cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)
