"""What a cut of all blocks at once does before its rebuild: score the blocks, and decide which remain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from apt_ds.config.run_config import RunConfig
from apt_ds.pruning.pruner import Allocate, Pruner
from apt_ds.pruning.surgery import Plan
from apt_ds.runtime import zero
from apt_ds.training.allocating import Allocator
from apt_ds.training.meter import Meter
from apt_ds.training.rebuild import engine_removed
from apt_ds.training.run_engine import RunEngine
from apt_ds.training.scale_learning import ScaleLearner
from apt_ds.training.train_step import TrainStep
from apt_ds.training.walk_batches import walk_batches


class OneShotCut:
    """Scores blocks on the calibration data and plans the one cut of a run.

    Attributes:
        run: the options.
        steps: runs a step.
        pruner: takes scores and decides.
        meter: measures the time.
        allocator: searches sizes.
        scales: learns factors.
    """

    def __init__(self, run: RunConfig, steps: TrainStep, pruner: Pruner, meter: Meter) -> None:
        self.run, self.steps, self.pruner, self.meter = run, steps, pruner, meter
        task_loss, batches = steps.training_loss.task_loss, steps.calibration_batches
        self.allocator = Allocator(pruner, task_loss, batches, run.pruning.allocate_evaluations)
        self.scales = ScaleLearner(run.pruning.scale_steps, lambda: pruner.masks, task_loss, batches)

    def plan(self, run_engine: RunEngine, save_or_end: Callable[[], None]) -> Plan:
        """The plan of the cut. Collective.

        Args:
            run_engine: its engine trains the whole model. The weights do not change. The engine may.
            save_or_end: saves and ends the run where that is due. Called after each scored step.
        """
        self._score(run_engine.engine, save_or_end)
        if self.pruner.scorer.reads_layer_inputs:
            self._score_layer_inputs(run_engine)
        engine = run_engine.engine
        zero.release_gathered(engine)
        with self.meter.scoring(at_once=True):
            plan = self.pruner.cut_now(engine.module, self._allocate(engine, save_or_end))
            if not self.run.pruning.scales or plan.keep is None or plan.keep.all():
                return plan
            self.steps.set_scoring(engine, False)
            factors = self.scales.learn(engine, self.pruner.anatomy, plan.keep, self._listening(save_or_end))
            return replace(plan, scale=factors)

    def _allocate(self, engine: zero.Engine, save_or_end: Callable[[], None]) -> Allocate | None:
        """What searches the sizes of the decision, if the options ask for it."""
        if not self.run.pruning.allocates:
            return None

        def improve(scores: np.ndarray, start: np.ndarray) -> np.ndarray:
            self.steps.set_scoring(engine, False)
            decision = self.allocator.improve(engine, scores, start, self._listening(save_or_end))
            self.steps.metrics_logger.say(self.allocator.line())
            return decision

        return improve

    def _listening(self, save_or_end: Callable[[], None]) -> Callable[[], None]:
        """`save_or_end`, after the ranks have heard of each other's signals."""

        def after() -> None:
            self.steps.early_end.listen()
            save_or_end()

        return after

    def _score(self, engine: zero.Engine, save_or_end: Callable[[], None]) -> None:
        """Give the pruner the scores of all blocks. Collective."""
        if self.pruner.scorer.uses_weight_gradients:
            with self.meter.scoring(at_once=True):
                self.steps.score_by_weight_gradients(engine)
            save_or_end()
        elif self.pruner.scorer.uses_hooks:
            for number in range(self.run.pruning.calibration_steps):
                self.steps.run(engine, number, calibrating=True)
                save_or_end()

    def _score_layer_inputs(self, run_engine: RunEngine) -> None:
        """Complete the scores between two engines: a walk needs a model without one. Collective."""
        with self.meter.scoring(at_once=True), engine_removed(run_engine, False, False) as (model, _):
            batches = walk_batches(self.run, self.steps.training_loss.task_loss, self.steps.calibration_batches, model)
            self.pruner.scorer.score_layer_inputs(model, batches)

    def summary(self) -> dict[str, Any]:
        """Figures for the summary. {} where scores alone decide."""
        return self.allocator.summary() | self.scales.summary()

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The figures and no tensors."""
        return self.summary(), {}

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take over `state_dict`."""
        self.allocator.load(values.get("allocation"))
        self.scales.load(values.get("scales"))
