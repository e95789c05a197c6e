"""Time and peak memory of a run on one rank: of the whole run, before the first cut, and at the final size."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

from apt_ds.eval.memory_in_use import memory_in_use
from apt_ds.runtime import profiler
from apt_ds.runtime.clock import seconds_after
from apt_ds.runtime.memory import peak_memory, peak_reserved, reset_peak
from apt_ds.training.meter_figures import PhaseMemory, SizeFigures, WholeFigures, size_figures

PARTS = ("steps", "scoring", "rebuilds", "evaluation")
PHASES = ("loading", "evaluation", "dense_steps", "scoring", "rebuilds", "final_steps", "writing")


class Meter:
    """Seconds by part of the run, and peak bytes of this rank: those in use, and those that a GPU's allocator reserves.

    Steps are optimizer steps, with the scoring that happens in them. Scoring is calibration, search, Fisher information
    and Taylor importance. Evaluation is measured separately. It is not part of `seconds` or of the run's peak.
    Loading, checkpoints and the export take no part in `seconds` and the run's peak.

    The process's own memory is what it uses when the meter is made, before the model is loaded: the interpreter,
    libraries and data sets. On a GPU it is 0, as the allocator counts tensors alone.

    Rebuilds and evaluations begin and end once the device has no work left. The seconds of a step end with its last
    call on the host: the step waits for its sums, so that only its update may still run, which the next step waits for.

    Attributes:
        rebuilds: seconds of each rebuild.
        rebuild_peaks: peak bytes of each rebuild.
        base: bytes of the process's own memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rebuilds: list[float] = []
        self.rebuild_peaks: list[int] = []
        self._parts = dict.fromkeys(PARTS, 0.0)
        self._dense: list[float] = []  # seconds of steps before the first cut
        self._final: list[float] = []  # seconds of steps since the last rebuild
        self._peaks = {"run": 0, "dense": 0, "final": 0, "evaluation": 0}
        self._reserved = {"run": 0, "dense": 0, "final": 0}
        self._added = dict.fromkeys(PHASES, 0)  # peaks of each phase without `base`
        self._last_rebuild = 0.0
        self.base = 0 if device.type == "cuda" else memory_in_use()
        self._tokens = [0, 0]  # of all training steps: without padding, and with it
        reset_peak(device)

    @property
    def seconds(self) -> float:
        """Training time so far: steps, scoring and rebuilds."""
        return self._parts["steps"] + self._parts["scoring"] + self._parts["rebuilds"]

    def step(self, seconds: float, dense: bool, calibrating: bool = False) -> None:
        """Record one step.

        Args:
            seconds: the step's duration.
            dense: whether no block has been cut yet.
            calibrating: whether the step updates nothing. It then counts as scoring.
        """
        self._parts["scoring" if calibrating else "steps"] += seconds
        self._final.append(seconds)
        self._fold("final")
        self._note("scoring" if calibrating else "final_steps")
        if dense:
            self._dense.append(seconds)
            self._fold("dense")
            self._note("dense_steps")

    def rows(self, tokens: int, with_padding: int) -> None:
        """Record the tokens of a training step's global batch: of its examples, and of its tensors."""
        self._tokens = [self._tokens[0] + tokens, self._tokens[1] + with_padding]

    @contextmanager
    def scoring(self, at_once: bool = False) -> Iterator[None]:
        """Record the body as scoring between two steps.

        Args:
            at_once: whether the scores are for a cut at once. The peak is then one of scoring.
        """
        start = time.perf_counter()
        yield
        self._parts["scoring"] += time.perf_counter() - start
        self._fold()
        if at_once:
            self._note("scoring")

    @contextmanager
    def apart(self, phase: str) -> Iterator[None]:
        """Record the body's peak as that of `phase` alone. It takes no part in `seconds` and the run's peak."""
        self.forget_peak()
        yield
        self._note(phase)
        self.forget_peak()

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Record the body as an evaluation."""
        self.forget_peak()
        start = seconds_after(self.device)
        yield
        self._parts["evaluation"] += seconds_after(self.device) - start
        self._peaks["evaluation"] = max(self._peaks["evaluation"], self.peak())
        self._note("evaluation")
        self.forget_peak()

    def begin_rebuild(self) -> None:
        """Start to measure the peak of a rebuild."""
        self._fold()
        self.forget_peak()

    def rebuilt(self, seconds: float, cut: bool) -> None:
        """Record a rebuild that `begin_rebuild` started. Figures of the final size start again.

        Args:
            seconds: the rebuild's duration.
            cut: whether the model became smaller.
        """
        self.rebuilds.append(seconds)
        self._parts["rebuilds"] += seconds
        self.rebuild_peaks.append(self.peak())
        self._fold()
        self._note("rebuilds")
        self._last_rebuild = seconds
        self._final, self._peaks["final"], self._reserved["final"], self._added["final_steps"] = [], 0, 0, 0
        if cut:
            profiler.NOW.cut()
        self.forget_peak()

    def forget_peak(self) -> None:
        """Exclude everything since the last step or rebuild from all peaks."""
        reset_peak(self.device)

    def _fold(self, *names: str) -> None:
        peak, reserved = self.peak(), peak_reserved(self.device)
        for name in ("run", *names):
            self._peaks[name] = max(self._peaks[name], peak)
            self._reserved[name] = max(self._reserved[name], reserved)

    def _note(self, phase: str) -> None:
        self._added[phase] = max(self._added[phase], self.peak() - self.base)

    def last_rebuild(self) -> float:
        """Seconds of the rebuild before this step, or 0. A second call returns 0."""
        seconds, self._last_rebuild = self._last_rebuild, 0.0
        return seconds

    def peak(self) -> int:
        """Peak bytes since the last reset."""
        return peak_memory(self.device)

    def state_dict(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Times in seconds and peaks in bytes. No tensors."""
        values = {
            "rebuilds": self.rebuilds,
            "dense": self._dense,
            "final": self._final,
            "parts": self._parts,
            "rebuild_peaks": self.rebuild_peaks,
            "peaks": self._peaks,
            "reserved": self._reserved,
            "added": self._added,
            "last_rebuild": self._last_rebuild,
            "tokens": self._tokens,
        }
        return values, {}

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Resume from what `state_dict` returned. The memory that loading used is not counted."""
        self.rebuilds, self.rebuild_peaks = values["rebuilds"], values["rebuild_peaks"]
        self._dense, self._final, self._parts = values["dense"], values["final"], values["parts"]
        self._peaks, self._last_rebuild = values["peaks"], values["last_rebuild"]
        # absent from checkpoints of earlier versions
        self._reserved = values.get("reserved", self._reserved)
        self._added |= values.get("added", {})
        self._tokens = values.get("tokens", self._tokens)
        self.forget_peak()

    def dense(self) -> SizeFigures:
        """Median step time and peak memory before the first cut."""
        return size_figures(self._dense, self._peaks["dense"], self._added["dense_steps"], self._reserved["dense"])

    def final(self) -> SizeFigures:
        """Median step time and peak memory since the last rebuild. None if no step followed it."""
        return size_figures(self._final, self._peaks["final"], self._added["final_steps"], self._reserved["final"])

    def whole(self) -> WholeFigures:
        """Time of the whole run by part, and the largest peaks of all engines."""
        return {
            "seconds": self.seconds,
            "steps_seconds": self._parts["steps"],
            "scoring_seconds": self._parts["scoring"],
            "rebuilds_seconds": self._parts["rebuilds"],
            "evaluation_seconds": self._parts["evaluation"],
            "peak_memory_bytes": self._peaks["run"] or None,
            "peak_reserved_bytes": self._reserved["run"] or None,
            "evaluation_peak_bytes": self._peaks["evaluation"] or None,
            "base_memory_bytes": self.base,
            "memory_by_phase": self.memory_by_phase(),
            "non_padding": self._tokens[0] / self._tokens[1] if self._tokens[1] else None,
        }

    def memory_by_phase(self) -> PhaseMemory:
        """Peak bytes of each phase without the process's own memory. A phase without a peak is absent."""
        return cast(PhaseMemory, {phase: peak for phase, peak in self._added.items() if peak})
