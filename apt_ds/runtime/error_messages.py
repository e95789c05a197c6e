"""Errors with a cause outside the program, as one line: memory that ran out, a lost rank."""

from __future__ import annotations

import torch

from apt_ds.config.errors import LostRank, UserError
from apt_ds.runtime import collectives, heartbeat
from apt_ds.runtime.watchdog import ADVICE, Watchdog

# what gloo and NCCL say when a peer has left
PEER = (
    *("Connection closed by peer", "Connection reset by peer", "Socket closed", "Broken pipe", "Timed out waiting"),
    *("Connection refused", "NCCL", "Application timeout caused pair closure", "Socket Timeout"),
)
MEMORY = ("can't allocate memory", "not enough memory", "CUDA out of memory")


def translate_error(error: Exception, watchdog: Watchdog) -> Exception:
    """The error to raise in its stead: `error` itself unless it is one of these."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(part in text for part in MEMORY):
        return UserError(
            f"out of memory in {heartbeat.CURRENT.phase}: lower --per_device_train_batch_size (and raise "
            "--gradient_accumulation_steps by the same factor), pass --gradient_checkpointing, or use "
            "--deepspeed ds_configs/zero3_offload.json"
        )
    if isinstance(error, collectives.BROKEN) or (
        isinstance(error, RuntimeError) and any(part in text for part in PEER)
    ):
        who = watchdog.lost() or f"a collective failed: {' '.join(text.split())[:200]}"
        return LostRank(f"in {heartbeat.CURRENT.phase}: {who}; {ADVICE}")
    return error
