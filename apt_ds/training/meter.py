"""Time and peak memory of a training run on one rank: of the whole run, before the first cut, at the final size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from apt_ds.runtime import profiler
from apt_ds.runtime.memory import peak_memory, reset_peak

PARTS = ("steps", "scoring", "rebuilds", "evaluation")


class Meter:
    """Seconds by part of the run, and peak bytes of this rank.

    Steps are optimizer steps, with the scoring that happens in them. Scoring is calibration, search, Fisher information
    and Taylor importance. Evaluation is measured apart: it belongs neither to `seconds` nor to the run's peak.
    Loading, checkpoints and the written model count nowhere.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rebuilds: list[float] = []
        self.rebuild_peaks: list[int] = []
        self._parts = dict.fromkeys(PARTS, 0.0)
        self._dense: list[float] = []  # seconds of steps before the first cut
        self._final: list[float] = []  # seconds of steps since the last rebuild
        self._peaks = {"run": 0, "dense": 0, "final": 0, "evaluation": 0}
        self._last_rebuild = 0.0
        reset_peak(device)

    @property
    def seconds(self) -> float:
        """Training time so far: steps, scoring and rebuilds."""
        return self._parts["steps"] + self._parts["scoring"] + self._parts["rebuilds"]

    def step(self, seconds: float, dense: bool, calibrating: bool = False) -> None:
        """Take one step. dense: nothing is cut yet. A calibration step updates nothing and counts as scoring."""
        self._parts["scoring" if calibrating else "steps"] += seconds
        self._final.append(seconds)
        self._fold("final")
        if dense:
            self._dense.append(seconds)
            self._fold("dense")

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Count what happens inside as scoring between two steps."""
        start = time.perf_counter()
        yield
        self._parts["scoring"] += time.perf_counter() - start
        self._fold()

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Measure an evaluation apart."""
        self.forget_peak()
        start = time.perf_counter()
        yield
        self._parts["evaluation"] += time.perf_counter() - start
        self._peaks["evaluation"] = max(self._peaks["evaluation"], self.peak())
        self.forget_peak()

    def begin_rebuild(self) -> None:
        """Start to measure the peak of a rebuild."""
        self._fold()
        self.forget_peak()

    def rebuilt(self, seconds: float, cut: bool) -> None:
        """Take one rebuild, before which `begin_rebuild` was called. The figures of the final size start again."""
        self.rebuilds.append(seconds)
        self._parts["rebuilds"] += seconds
        self.rebuild_peaks.append(self.peak())
        self._fold()
        self._last_rebuild = seconds
        self._final, self._peaks["final"] = [], 0
        if cut:
            profiler.NOW.cut()
        self.forget_peak()

    def forget_peak(self) -> None:
        """Leave what happened since the last step or rebuild (loading, an evaluation) out of all peaks."""
        reset_peak(self.device)

    def _fold(self, *names: str) -> None:
        peak = self.peak()
        for name in ("run", *names):
            self._peaks[name] = max(self._peaks[name], peak)

    def last_rebuild(self) -> float:
        """Seconds of the rebuild before this step, or 0. A second call returns 0."""
        seconds, self._last_rebuild = self._last_rebuild, 0.0
        return seconds

    def peak(self) -> int:
        """Peak memory since it was last reset."""
        return peak_memory(self.device)

    def state(self) -> dict[str, Any]:
        """What `load_state` takes. Times are in seconds, peaks in bytes."""
        times = {"rebuilds": self.rebuilds, "dense": self._dense, "final": self._final, "parts": self._parts}
        return times | {"rebuild_peaks": self.rebuild_peaks, "peaks": self._peaks, "last_rebuild": self._last_rebuild}

    def load_state(self, values: dict[str, Any]) -> None:
        """Go on from what `state` returned. Memory used until now, which is that of loading, does not count."""
        self.rebuilds, self.rebuild_peaks = values["rebuilds"], values["rebuild_peaks"]
        self._dense, self._final, self._parts = values["dense"], values["final"], values["parts"]
        self._peaks, self._last_rebuild = values["peaks"], values["last_rebuild"]
        self.forget_peak()

    def dense(self) -> dict[str, float | int | None]:
        """Median step time and peak memory before the first cut."""
        return figures(self._dense, self._peaks["dense"])

    def final(self) -> dict[str, float | int | None]:
        """Median step time and peak memory since the last rebuild; None where no step came after it."""
        return figures(self._final, self._peaks["final"])

    def whole(self) -> dict[str, float | int | None]:
        """The whole run: `seconds` with its parts, evaluation apart, and the largest peak of all engines."""
        parts = {"seconds": self.seconds} | {f"{part}_seconds": self._parts[part] for part in PARTS}
        parts |= {"peak_memory_bytes": self._peaks["run"] or None}
        return parts | {"evaluation_peak_bytes": self._peaks["evaluation"] or None}


def figures(times: list[float], peak: int) -> dict[str, float | int | None]:
    """Figures of the report. The first step warms caches and does not count, unless it is the only one."""
    counted = times[1:] or times
    return {
        "step_seconds": statistics.median(counted) if counted else None,
        "peak_memory_bytes": peak if counted and peak else None,
    }
