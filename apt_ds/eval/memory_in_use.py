"""Bytes that this process uses, and a heap that shows them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import torch

from apt_ds.runtime import zero
from apt_ds.runtime.memory import trim_heap

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt


def memory_in_use() -> int:
    """Bytes that this process uses now, after the allocator has returned free memory."""
    if zero.device().type == "cuda":
        return torch.cuda.memory_allocated(zero.device())
    trim_heap()
    return psutil.Process().memory_info().rss


@contextmanager
def exact_heap() -> Iterator[None]:
    """Inside the context glibc returns the memory of every freed tensor. Cached memory would distort the figures."""

    def set_thresholds(mmap: int, trim: int) -> None:
        with suppress(OSError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(M_MMAP_THRESHOLD, mmap)
            libc.mallopt(M_TRIM_THRESHOLD, trim)

    set_thresholds(2**16, 2**17)
    try:
        yield
    finally:
        # the values that glibc reaches by itself
        set_thresholds(2**25, 2**26)
