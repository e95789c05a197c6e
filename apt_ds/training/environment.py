"""Where a run came from: its command, its processes, its device and the versions of its packages."""

from __future__ import annotations

import platform
import shlex
import sys

import torch

import apt_ds
from apt_ds.config.run_config import SECRETS
from apt_ds.runtime import collectives, zero
from apt_ds.training.checkpoint.manifest import versions
from apt_ds.training.summary_schema import Environment


def command() -> str:
    """The words of this process on one line, as a shell reads them, without what a launcher adds, and no secret."""
    words = [word for word in sys.argv if not word.startswith("--local_rank")]
    return shlex.join(without_secrets(words)).replace("\n", " ")


def without_secrets(words: list[str]) -> list[str]:
    """The words without the options of `SECRETS` and their values."""
    flags, kept, value = tuple(f"--{name}" for name in SECRETS), [], False
    for word in words:
        secret = word.partition("=")[0] in flags
        if not secret and not value:
            kept.append(word)
        value = secret and "=" not in word
    return kept


def describe() -> Environment:
    """The environment of this run, on the first rank."""
    return {
        "command": command(),
        "world_size": collectives.world_size(),
        "device": device_name(),
        "versions": {
            "apt_ds": apt_ds.__version__,
            "python": platform.python_version(),
            **versions(),
        },
    }


def device_name() -> str:
    """The name of the GPU, or the number of threads on a CPU."""
    device = zero.device()
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads per process"
