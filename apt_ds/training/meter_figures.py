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


class WholeFigures(TypedDict):
    """Cost of a whole run. `seconds` is the sum of steps, scoring and rebuilds.

    `peak_reserved_bytes` is None on the CPU. `memory_by_phase` leaves out the process's own memory. `non_padding` is
    the fraction of the training batches' tokens that is not padding, None without a step.
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
    memory_by_phase: dict[str, int]
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
