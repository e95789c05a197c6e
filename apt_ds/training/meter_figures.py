"""What a meter says: the cost of training at one size, and of a whole run."""

from __future__ import annotations

import statistics
from typing import TypedDict


class SizeFigures(TypedDict):
    """Cost of training a model of one size. None without a step at this size.

    `peak_added_bytes` is the peak without the process's own memory. `peak_reserved_bytes` is None on the CPU.
    """

    step_seconds: float | None
    peak_memory_bytes: int | None
    peak_added_bytes: int | None
    peak_reserved_bytes: int | None


class PhaseMemory(TypedDict, total=False):
    """Peak bytes of each phase without `base_memory_bytes`. A phase that the run did not have is absent.

    Attributes:
        loading: base model, adapters and the first engine.
        evaluation: evaluations of the model in training.
        dense_steps, final_steps: steps before the first cut, and steps at the final size.
        scoring: what scores blocks for a cut at once.
        rebuilds: the largest rebuild.
        writing: the export.
    """

    loading: int
    evaluation: int
    dense_steps: int
    scoring: int
    rebuilds: int
    final_steps: int
    writing: int


class WholeFigures(TypedDict):
    """Cost of a whole run.

    Attributes:
        seconds: steps, scoring and rebuilds together. Evaluation is not in it.
        peak_memory_bytes, peak_reserved_bytes: bytes in use, and bytes that the GPU's allocator reserved (None on
            the CPU).
        base_memory_bytes: what the process that ended the run used before it loaded the model. 0 on a GPU.
        non_padding: fraction of the training batches' tokens that is not padding. None without a step.
    """

    seconds: float
    steps_seconds: float
    scoring_seconds: float
    rebuilds_seconds: float
    evaluation_seconds: float
    peak_memory_bytes: int | None
    peak_reserved_bytes: int | None
    evaluation_peak_bytes: int | None
    base_memory_bytes: int
    memory_by_phase: PhaseMemory
    non_padding: float | None


def size_figures(times: list[float], peak: int, added: int, reserved: int) -> SizeFigures:
    """Median time and peaks of the steps at one size.

    The first step warms caches. It does not count unless it is the only one.
    """
    counted = times[1:] or times
    return {
        "step_seconds": statistics.median(counted) if counted else None,
        "peak_memory_bytes": peak if counted and peak else None,
        "peak_added_bytes": added if counted and added else None,
        "peak_reserved_bytes": reserved if counted and reserved else None,
    }
