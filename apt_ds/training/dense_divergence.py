"""How far the masked model's predictions are from the dense model's, on parts of the calibration data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from apt_ds.data.batching import Batch, collate
from apt_ds.data.tokenized import Row
from apt_ds.eval.held_out import evaluation_mode, rank_batches
from apt_ds.losses.dense_predictions import Prediction, divergence, short_form
from apt_ds.losses.task_loss import TaskLoss
from apt_ds.pruning.masks import Masks
from apt_ds.runtime import collectives, heartbeat, zero
from apt_ds.training.micro_batches import MicroBatches


def calibration_rows(batches: MicroBatches, task_loss: TaskLoss, tokens: int) -> Iterator[list[Row]]:
    """The rows of each step of the calibration data, at most once around and until they have `tokens` predictions.

    The same on all ranks. Collective where the data is streamed.
    """
    seen = 0
    for step in range(batches.order.steps(1.0)):
        if seen >= tokens:
            return
        heartbeat.progress()
        rows = batches.rows(step)
        seen += predictions(rows, task_loss)
        yield rows


def predictions(rows: list[Row], task_loss: TaskLoss) -> int:
    """What the mean over some rows counts: labelled tokens of language models, examples of other tasks."""
    return sum(task_loss.loss_denominator(row) for row in rows)


@dataclass
class Part:
    """Some rows of the calibration data.

    Attributes:
        rows: of all ranks.
        batches: this rank's, on the device. None until they are needed. A rank without rows left has an empty place.
        dense: the dense model's predictions for each batch.
    """

    rows: list[Row]
    batches: list[Batch] | None = None
    dense: list[list[Prediction]] = field(default_factory=list)


class DenseDivergence:
    """Runs the engine's model under masks. Every rank runs its share of the rows, and sums are reduced. Collective.

    Attributes:
        evaluations: passes so far, in units of `unit` predictions.
        tokens: predictions of all parts that a pass has read.
    """

    def __init__(
        self,
        engine: zero.Engine,
        masks: Masks,
        task_loss: TaskLoss,
        batches: MicroBatches,
        unit: int,
        after: Callable[[], None],
    ) -> None:
        """Take what a pass needs.

        Args:
            engine: its model has the hooks of `masks`, and no hooks that observe.
            masks: all 1 outside of this object's methods.
            task_loss: gives the logits.
            batches: the calibration data.
            unit: predictions of one evaluation.
            after: called after each pass. May end the run.
        """
        self.engine, self.masks, self.task_loss = engine, masks, task_loss
        self.pad_id, self.device, self.per_device = batches.pad_id, batches.device, batches.per_device
        self.unit, self.after = unit, after
        self.evaluations, self.tokens = 0, 0

    def cost(self, part: Part) -> int:
        """Evaluations of one pass over a part."""
        return max(1, round(predictions(part.rows, self.task_loss) / self.unit))

    @torch.no_grad()
    def mean(self, keep: np.ndarray, part: Part) -> float:
        """Mean divergence in nats where blocks have these masks, infinite if it is not finite. keep: [blocks]."""
        if part.batches is None:
            self._take_dense(part)
        assert part.batches is not None
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.masks.set(keep.astype(float))
        try:
            with evaluation_mode(self.engine):
                for batch, dense in zip(part.batches, part.dense, strict=True):
                    heartbeat.progress()
                    logits = self.task_loss.logits(self.engine, batch)
                    if dense:
                        total += divergence(logits, dense)
        finally:
            self.masks.set(np.ones(len(keep)))
        value = float(collectives.all_reduce_sum(total)) / predictions(part.rows, self.task_loss)
        self._passed(part)
        return value if math.isfinite(value) else math.inf

    def _take_dense(self, part: Part) -> None:
        """Run the model without masks over a part, and keep the short form of its predictions."""
        part.batches = []
        with evaluation_mode(self.engine), self.masks.disabled():
            for indices in rank_batches(len(part.rows), self.per_device):
                heartbeat.progress()
                batch = collate([part.rows[i] for i in indices or [0]], self.pad_id)
                # labels stay on the CPU, where the loss looks up which tokens count
                batch = replace(batch.to(self.device), labels=batch.labels)
                part.batches.append(batch)
                logits = self.task_loss.logits(self.engine, batch)
                part.dense.append(short_form(logits) if indices else [])
        self.tokens += predictions(part.rows, self.task_loss)
        self._passed(part)

    def _passed(self, part: Part) -> None:
        # passes without a backward one leave weights gathered
        zero.release_gathered(self.engine)
        self.evaluations += self.cost(part)
        self.after()


def finite(value: float) -> float | None:
    """The value, or None: JSON has neither infinity nor NaN."""
    return value if math.isfinite(value) else None
