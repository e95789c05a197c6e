"""Compiles the operation of DeepSpeed that offloading runs use, so that no later stage waits for a compiler."""

from __future__ import annotations

import time

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam


def main() -> None:
    """Make the optimizer, which compiles it, and take a step."""
    start = time.perf_counter()
    parameter = torch.nn.Parameter(torch.zeros(8))
    parameter.grad = torch.ones_like(parameter)
    DeepSpeedCPUAdam([parameter]).step()
    assert float(parameter.detach().sum()) < 0, "CPUAdam has not moved its parameter"
    print(f"OK   CPUAdam: compiled or found in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
