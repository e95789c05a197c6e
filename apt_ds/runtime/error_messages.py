"""Errors with a cause outside the program, as one line: memory that ran out, a lost rank, a kernel that is missing."""

from __future__ import annotations

import re

import torch

from apt_ds.config.errors import LostRank, UserError
from apt_ds.runtime import collectives, heartbeat
from apt_ds.runtime.watchdog import ADVICE, Watchdog

# what gloo and NCCL say when a peer has left
PEER = (
    *("Connection closed by peer", "Connection reset by peer", "Socket closed", "Broken pipe", "Timed out waiting"),
    *("Connection refused", "NCCL", "Application timeout caused pair closure", "Socket Timeout"),
)
# what says that memory ran out: torch's allocators, calls of CUDA outside them, CUDA's libraries, NCCL
MEMORY = re.compile(
    r"can't allocate memory|not enough memory|CUDA out of memory"
    r"|CUDA error: out of memory|cudaErrorMemoryAllocation"
    r"|CU[A-Z]+_STATUS_ALLOC_FAILED"
    r"|Cuda failure( \d+)? 'out of memory'|Failed to CUDA (host )?[mc]?alloc"
)


# what torch says of an operation that `--deterministic` excludes
NOT_DETERMINISTIC = re.compile(r"(\S+) does not have a deterministic implementation")


def translate_error(error: Exception, watchdog: Watchdog) -> Exception:
    """The error to raise in its stead: `error` itself unless it is one of these.

    Memory comes first: NCCL too allocates on the device, and its message then also looks like that of a lost peer.
    """
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or MEMORY.search(text):
        return UserError(
            f"out of memory in {heartbeat.CURRENT.phase}: lower --per_device_train_batch_size (and raise "
            "--gradient_accumulation_steps by the same factor), pass --gradient_checkpointing, or use "
            "--deepspeed ds_configs/zero3_offload.json"
        )
    if match := NOT_DETERMINISTIC.search(text):
        return UserError(
            f"--deterministic: {match[1]} has no deterministic kernel on this device. Leave --deterministic out, "
            "or try another --attn_implementation"
        )
    if isinstance(error, collectives.BROKEN) or (
        isinstance(error, RuntimeError) and any(part in text for part in PEER)
    ):
        who = watchdog.lost() or f"a collective failed: {' '.join(text.split())[:200]}"
        return LostRank(f"in {heartbeat.CURRENT.phase}: {who}; {ADVICE}")
    return error
