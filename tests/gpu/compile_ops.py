"""Compiles the operations of DeepSpeed that runs use, so that no later stage waits for a compiler."""

from __future__ import annotations

import time

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam


def main() -> None:
    """Make one optimizer of each kind, which compiles it."""
    kinds = {"CPUAdam": (DeepSpeedCPUAdam, "cpu")}
    if torch.cuda.is_available():
        kinds["FusedAdam"] = FusedAdam, "cuda"
    for name, (kind, device) in kinds.items():
        start = time.perf_counter()
        parameter = torch.nn.Parameter(torch.zeros(8, device=device))
        parameter.grad = torch.ones_like(parameter)
        kind([parameter]).step()
        assert float(parameter.detach().sum()) < 0, f"{name} has not moved its parameter"
        print(f"OK   {name}: compiled or found in {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
