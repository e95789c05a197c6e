"""A factor of every kept head and neuron, learnt with masks before a cut at once (`--scale_steps`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apt_ds.eval.held_out import evaluation_mode
from apt_ds.losses.dense_predictions import divergence, short_form
from apt_ds.losses.task_losses import TaskLoss
from apt_ds.models.blocks import HIDDEN, Anatomy, block_slices
from apt_ds.pruning.masks import Masks
from apt_ds.runtime import collectives, heartbeat, zero
from apt_ds.runtime.clock import seconds_after
from apt_ds.training.dense_divergence import predictions
from apt_ds.training.micro_batches import MicroBatches

LEARNING_RATE = 1e-2


@dataclass(frozen=True)
class ScaleFigures:
    """What the steps did, as in `summary_schema.ScaleFigures`."""

    steps: int
    first_loss: float
    last_loss: float
    smallest: float
    largest: float
    seconds: float


class ScaleLearner:
    """Minimises cross-entropy plus divergence from the dense model over the factors alone.

    The factors multiply the masks of a decision. Adam changes them at a learning rate that falls to 0. The engine's own
    step has a learning rate of 0.

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
        losses = []
        for step in range(self.steps):
            heartbeat.phase(f"scale step {step + 1}")
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / self.steps)
            loss, gradient = self._gradient(engine, scale, step)
            losses.append(loss)
            if torch.isfinite(gradient).all():
                scale.grad = torch.where(learnt, gradient, 0.0)
                optimizer.step()
            after()
        zero.release_gathered(engine)
        # devices may differ in the last bit
        values = collectives.from_main(scale.detach().clamp(min=0.0)).double().cpu().numpy()
        chosen = values[learnt.cpu().numpy()] if learnt.any() else np.ones(1)
        self.figures = ScaleFigures(
            self.steps,
            losses[0],
            losses[-1],
            float(chosen.min()),
            float(chosen.max()),
            seconds_after(zero.device()) - begin,
        )
        return values

    def _gradient(self, engine: zero.Engine, scale: Tensor, step: int) -> tuple[float, Tensor]:
        """The mean loss of a calibration step, and its gradient by the factors, fp32 [blocks]. Collective."""
        count = predictions(self.batches.rows(step), self.task_loss)
        # as in `TrainStep.accumulate`: the engine divides by the micro-batches
        factor = collectives.world_size() * self.batches.per_step / count
        total = torch.zeros((), dtype=torch.float64, device=zero.device())
        scale.grad = torch.zeros_like(scale)
        loss_scale = zero.loss_scale(engine)
        for micro in range(self.batches.per_step):
            heartbeat.progress()
            batch, masks = self.batches.on_device(step, micro), self._masks()
            with torch.no_grad(), evaluation_mode(engine), masks.disabled():
                dense = short_form(self.task_loss.logits(engine, batch))
            with masks.scaled(scale):
                logits = self.task_loss.logits(engine, batch)
                loss = self.task_loss.loss(logits, batch) + divergence(logits, dense)
                # recomputation in backward needs the factors too
                engine.backward(loss.float() * factor)
            total += loss.detach()
            if micro + 1 < self.batches.per_step:
                engine.step()
        gradient = collectives.all_reduce_sum(scale.grad) / (loss_scale * collectives.world_size())
        mean = float(collectives.all_reduce_sum(total)) / count
        zero.step(engine)
        return mean, gradient

    def summary(self) -> dict[str, Any]:
        """Figures for the summary. {} without steps."""
        return {"scales": asdict(self.figures)} if self.figures else {}

    def load(self, values: dict[str, Any] | None) -> None:
        """Take over the figures of a run, as `summary` has them."""
        self.figures = ScaleFigures(**values) if values else None


def _learnt(anatomy: Anatomy, keep: np.ndarray) -> np.ndarray:
    """Blocks whose factor the cut can fold in, bool [blocks]: kept ones at sites that lose some."""
    learnt = np.zeros(len(keep), dtype=bool)
    for site, span in block_slices(anatomy.sizes):
        if site != HIDDEN and not keep[span].all():
            learnt[span] = keep[span]
    return learnt
