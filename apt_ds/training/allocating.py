"""Sizes by the divergence from the dense model (`--allocate kl`): what judges candidates, and what it reports."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from apt_ds.config.errors import UserError
from apt_ds.data.tokenized import Row
from apt_ds.losses.task_loss import TaskLoss
from apt_ds.pruning.allocation import allocate
from apt_ds.pruning.pruner import Pruner
from apt_ds.runtime import heartbeat, zero
from apt_ds.runtime.clock import seconds_after
from apt_ds.training.dense_divergence import DenseDivergence, Part, calibration_rows, finite, predictions
from apt_ds.training.micro_batches import MicroBatches
from apt_ds.training.pruning_figures import AllocationFigures

UNIT = 2048  # predictions of one evaluation, and of the first stage
LATER = (8 * UNIT, 64 * UNIT)  # of the later stages
SHARE = 1 / 16  # of all evaluations: the most that one pass over a stage may cost
PROBES = 3  # parts of `UNIT` predictions that propose candidates


class StagedMeter:
    """Measures candidates on parts of the calibration data. See `allocation.CandidateMeter`.

    Parts are consecutive rows of the data's order, so that no two share a row of one pass over the data.
    """

    def __init__(self, divergence: DenseDivergence, evaluations: int, steps: list[list[Row]]) -> None:
        """Divide the rows.

        Args:
            divergence: runs the model.
            evaluations: the most that may be spent.
            steps: rows of the calibration data, by step.
        """
        self._divergence, self._evaluations = divergence, evaluations
        task_loss = divergence.task_loss
        rows = [row for step in steps for row in step]
        stages, probes = part_sizes(predictions(rows, task_loss), evaluations)
        parts = divided(rows, [*stages, *probes], task_loss)
        self._stages, self._probes = parts[: len(stages)], parts[len(stages) :] or parts[:1]
        self.stages = len(self._stages)

    @property
    def left(self) -> int:
        """Evaluations that may still be spent."""
        return self._evaluations - self._divergence.evaluations

    def cost(self, stage: int) -> int:
        """Evaluations of one pass over a stage."""
        return self._divergence.cost(self._stages[stage])

    def probe_cost(self, number: int) -> int:
        """Evaluations of one pass over the tokens of a round."""
        return self._divergence.cost(self._probe(number))

    def divergence(self, keep: np.ndarray, stage: int) -> float:
        """Mean divergence over a stage. Collective."""
        heartbeat.phase(f"sizes by divergence: stage {stage + 1}")
        return self._divergence.mean(keep, self._stages[stage])

    def probe(self, keep: np.ndarray, number: int) -> float:
        """Mean divergence over the tokens of a round. Collective."""
        heartbeat.phase(f"sizes by divergence: round {number + 1}")
        return self._divergence.mean(keep, self._probe(number))

    def _probe(self, number: int) -> Part:
        return self._probes[number % len(self._probes)]


def part_sizes(available: int, evaluations: int) -> tuple[list[int], list[int]]:
    """Predictions of every stage, and of every part that proposes candidates.

    Args:
        available: predictions of the calibration data.
        evaluations: those of the whole search.
    """
    first = min(UNIT, max(1, available // 4))
    stages, most, left = [first], max(first, int(SHARE * evaluations * UNIT)), available - 2 * first
    for wanted in LATER:
        size = min(wanted, most, left)
        # a stage of hardly more tokens says hardly more
        if size >= 2 * stages[-1]:
            stages.append(size)
            left -= size
    return stages, [first] * min(PROBES, 1 + max(0, left) // first)


def divided(rows: list[Row], sizes: list[int], task_loss: TaskLoss) -> list[Part]:
    """Parts of consecutive rows with at least these numbers of predictions. Parts without a row left are absent."""
    parts, start = [], 0
    for size in sizes:
        end, seen = start, 0
        while end < len(rows) and seen < size:
            seen += task_loss.loss_denominator(rows[end])
            end += 1
        if seen:
            parts.append(Part(rows[start:end]))
        start = end
    return parts


class Allocator:
    """Searches the sizes of a run's one cut.

    Attributes:
        figures: of the search. None without one.
    """

    def __init__(self, pruner: Pruner, task_loss: TaskLoss, batches: MicroBatches, evaluations: int) -> None:
        self.pruner, self.task_loss, self.batches, self.evaluations = pruner, task_loss, batches, evaluations
        self.figures: AllocationFigures | None = None

    def improve(
        self, engine: zero.Engine, scores: np.ndarray, start: np.ndarray, after: Callable[[], None]
    ) -> np.ndarray:
        """The decision after the search, bool [blocks]. Collective.

        Args:
            engine: its model is dense and has no hooks that observe.
            scores: float64 [blocks].
            start: bool [blocks], the decision of the scores.
            after: called after each pass. May end the run.

        Raises:
            UserError: the calibration data has no predictions.
        """
        begin, pruner = seconds_after(zero.device()), self.pruner
        divergence = DenseDivergence(engine, pruner.masks, self.task_loss, self.batches, UNIT, after)
        most = (2 + PROBES) * UNIT + int(SHARE * self.evaluations * UNIT) + LATER[0]
        steps = list(calibration_rows(self.batches, self.task_loss, most))
        if not any(predictions(rows, self.task_loss) for rows in steps):
            raise UserError("--allocate kl finds no trained token in the calibration data: give another source")
        meter = StagedMeter(divergence, self.evaluations, steps)
        result = allocate(
            scores, start, pruner.anatomy, pruner.rules, pruner.budget(pruner.run.pruning.sparsity), meter
        )
        self.figures = AllocationFigures(
            kl_before=finite(result.before),
            kl_after=finite(result.after),
            evaluations=divergence.evaluations,
            tokens=divergence.tokens,
            seconds=seconds_after(zero.device()) - begin,
            moves=result.moves,
            accepted=result.accepted,
        )
        return result.keep

    def line(self) -> str:
        """The result in one line."""
        figures = self.figures
        assert figures is not None
        before, after = (math.inf if value is None else value for value in (figures["kl_before"], figures["kl_after"]))
        return (
            f"divergence from the dense model {before:.4f} -> {after:.4f} after {figures['moves']} moves "
            f"({figures['evaluations']} evaluations)"
        )

    def summary(self) -> dict[str, Any]:
        """Figures for the summary. {} without a search."""
        return {"allocation": self.figures} if self.figures else {}

    def load(self, values: AllocationFigures | None) -> None:
        """Take over the figures of a run, as `summary` has them."""
        self.figures = values
