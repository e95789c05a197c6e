"""A factor of every kept head and neuron, learnt with masks before a cut at once (`--scale_steps`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apt_ds.data.batching import Batch
from apt_ds.eval.held_out import evaluation_mode
from apt_ds.losses.dense_predictions import Prediction, divergence, short_form
from apt_ds.losses.task_loss import Logits, TaskLoss
from apt_ds.models.blocks import HIDDEN, Anatomy, block_slices
from apt_ds.pruning.masks import Masks
from apt_ds.runtime import collectives, heartbeat, zero
from apt_ds.runtime.clock import seconds_after
from apt_ds.training.dense_divergence import finite, predictions
from apt_ds.training.micro_batches import MicroBatches
from apt_ds.training.pruning_figures import ScaleFigures

LEARNING_RATE = 1e-2
CHECKED = 1 / 4  # of the steps: how many further ones compare the factors with 1


class ScaleLearner:
    """Minimises cross-entropy plus divergence from the dense model over the factors alone.

    The factors multiply the masks of a decision. Adam changes them at a learning rate that falls to 0. The engine's own
    step has a learning rate of 0. Factors that do not lower the loss on further calibration steps are dropped.

    Attributes:
        figures: of the steps. None without any.
    """

    def __init__(self, steps: int, masks: Callable[[], Masks], task_loss: TaskLoss, batches: MicroBatches) -> None:
        self.steps, self._masks, self.task_loss, self.batches = steps, masks, task_loss, batches
        self.figures: ScaleFigures | None = None

    def learn(self, engine: zero.Engine, anatomy: Anatomy, keep: np.ndarray, after: Callable[[], None]) -> np.ndarray:
        """Factors of all blocks, float64 [blocks]. 1 at sites that lose nothing and for hidden dimensions. Collective.

        Args:
            engine: trains the model. It has no hooks that observe.
            anatomy: the model before the cut.
            keep: bool [blocks], the decision. The masks have it.
            after: called after each step. May end the run.
        """
        begin = seconds_after(zero.device())
        learnt = torch.from_numpy(_learnt(anatomy, keep)).to(zero.device())
        scale = torch.ones(len(keep), device=zero.device(), requires_grad=True)
        optimizer = torch.optim.Adam([scale], lr=LEARNING_RATE)
        zero.set_learning_rate(engine, 0.0)
        for step in range(self.steps):
            heartbeat.phase(f"scale step {step + 1}")
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / self.steps)
            gradient = self._gradient(engine, scale, step % self._parts()[0])
            if torch.isfinite(gradient).all():
                scale.grad = torch.where(learnt, gradient, 0.0)
                optimizer.step()
            after()
        # devices may differ in the last bit
        scale = collectives.from_main(scale.detach().clamp(min=0.0))
        loss_before, loss_after = self._checked(engine, torch.ones_like(scale), scale)
        values = scale.double().cpu().numpy() if loss_after < loss_before else np.ones(len(keep))
        chosen = values[keep]
        seconds = seconds_after(zero.device()) - begin
        self.figures = ScaleFigures(
            steps=self.steps,
            loss_before=finite(loss_before),
            loss_after=finite(min(loss_before, loss_after)),
            smallest=float(chosen.min()),
            largest=float(chosen.max()),
            seconds=seconds,
        )
        return values

    @torch.no_grad()
    def _checked(self, engine: zero.Engine, *scales: Tensor) -> list[float]:
        """The mean loss of each of some factors, over calibration steps after those that learn. Collective."""
        sums = torch.zeros(len(scales), dtype=torch.float64, device=zero.device())
        count, masks = 0, self._masks()
        heartbeat.phase("comparison of factors")
        with evaluation_mode(engine):
            learning, checks = self._parts()
            for step in range(learning, learning + checks):
                count += predictions(self.batches.rows(step), self.task_loss)
                for micro in range(self.batches.per_step):
                    heartbeat.progress()
                    batch = self.batches.on_device(step, micro)
                    with masks.disabled():
                        dense = short_form(self.task_loss.logits(engine, batch))
                    for number, scale in enumerate(scales):
                        with masks.scaled(scale):
                            sums[number] += self._loss(self.task_loss.logits(engine, batch), batch, dense)
        zero.release_gathered(engine)
        return [value / count for value in collectives.all_reduce_sum(sums).tolist()]

    def _parts(self) -> tuple[int, int]:
        """Steps of the data that learn, and those after them that compare. Small data has fewer than `steps`."""
        learning = min(self.steps, max(1, int(self.batches.order.steps(1.0) / (1 + CHECKED))))
        return learning, max(1, int(CHECKED * learning))

    def _loss(self, logits: Logits, batch: Batch, dense: list[Prediction]) -> Tensor:
        """Cross-entropy plus divergence, summed over predictions, fp64 []."""
        return self.task_loss.loss(logits, batch) + divergence(logits, dense)

    def _gradient(self, engine: zero.Engine, scale: Tensor, step: int) -> Tensor:
        """The gradient of a calibration step's mean loss by the factors, fp32 [blocks]. Collective."""
        count = predictions(self.batches.rows(step), self.task_loss)
        # as in `TrainStep.accumulate`: the engine divides by the micro-batches
        factor = collectives.world_size() * self.batches.per_step / count
        scale.grad = torch.zeros_like(scale)
        loss_scale = zero.loss_scale(engine)
        for micro in range(self.batches.per_step):
            heartbeat.progress()
            batch, masks = self.batches.on_device(step, micro), self._masks()
            with torch.no_grad(), evaluation_mode(engine), masks.disabled():
                dense = short_form(self.task_loss.logits(engine, batch))
            with masks.scaled(scale):
                logits = self.task_loss.logits(engine, batch)
                # recomputation in backward needs the factors too
                engine.backward(self._loss(logits, batch, dense).float() * factor)
            if micro + 1 < self.batches.per_step:
                engine.step()
        gradient = collectives.all_reduce_sum(scale.grad) / (loss_scale * collectives.world_size())
        zero.step(engine)
        return gradient

    def summary(self) -> dict[str, Any]:
        """Figures for the summary. {} without steps."""
        return {"scales": self.figures} if self.figures else {}

    def load(self, values: ScaleFigures | None) -> None:
        """Take over the figures of a run, as `summary` has them."""
        self.figures = values


def _learnt(anatomy: Anatomy, keep: np.ndarray) -> np.ndarray:
    """Blocks whose factor the cut can fold in, bool [blocks]: kept ones at sites that lose some."""
    learnt = np.zeros(len(keep), dtype=bool)
    for site, span in block_slices(anatomy.sizes):
        if site != HIDDEN and not keep[span].all():
            learnt[span] = keep[span]
    return learnt
