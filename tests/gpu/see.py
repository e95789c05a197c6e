"""Prints the GPU, its driver, compilers and package versions, and imports what a run imports."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shutil
import subprocess
import sys

PACKAGES = ("torch", "transformers", "accelerate", "peft", "deepspeed", "datasets", "bitsandbytes", "numpy", "pytest")
MODULES = ("apt_ds.api", "apt_ds.training.run", "apt_ds.analysis.benchmark", "apt_ds.eval.commands")


def versions() -> dict[str, str]:
    """The version of each package. `absent` where it is not installed."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = "absent"
    return installed


def card() -> str:
    """Name and memory of the GPU, or the processor of a dry run."""
    import torch

    if not torch.cuda.is_available():
        return f"no GPU, {os.cpu_count()} CPU cores"
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def driver() -> str:
    """The version of the NVIDIA driver, '' without one."""
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.strip().partition("\n")[0]


def main() -> None:
    """Print everything. Status 1 if there is no GPU, except in a dry run."""
    import torch

    print(f"card: {card()}; driver: {driver() or 'none'}; CUDA of torch: {torch.version.cuda}")
    print(f"Python {sys.version.split()[0]};", "; ".join(f"{name} {number}" for name, number in versions().items()))
    print("; ".join(f"{name}: {shutil.which(name) or 'absent'}" for name in ("nvcc", "g++", "ninja", "deepspeed")))
    for name in MODULES:
        importlib.import_module(name)
    from apt_ds.runtime import zero

    zero.init_distributed()
    print(f"DeepSpeed computes on {zero.device()}")
    if not torch.cuda.is_available() and not os.environ.get("DRY"):
        sys.exit("FAIL no GPU: give DRY=1 to try the command on the CPU")
    print("OK   see")


if __name__ == "__main__":
    main()
