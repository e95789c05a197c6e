"""What a cut of all blocks at once does before its rebuild: score the blocks, and decide which remain."""

from __future__ import annotations

from collections.abc import Callable

from apt_ds.config.run_config import RunConfig
from apt_ds.pruning.pruner import Pruner
from apt_ds.pruning.surgery import Plan
from apt_ds.runtime import zero
from apt_ds.training.meter import Meter
from apt_ds.training.train_step import TrainStep


class OneShotCut:
    """Scores blocks on the calibration data and plans the one cut of a run.

    run: the options; steps: runs a step; pruner: takes scores and decides; meter: measures the time.
    """

    def __init__(self, run: RunConfig, steps: TrainStep, pruner: Pruner, meter: Meter) -> None:
        self.run, self.steps, self.pruner, self.meter = run, steps, pruner, meter

    def plan(self, engine: zero.Engine, keep: Callable[[], None]) -> Plan:
        """The plan of the cut. Collective.

        Args:
            engine: trains the whole model. Its weights do not change.
            keep: saves and ends the run where that is due. Called after each scored step.
        """
        self._score(engine, keep)
        zero.release_gathered(engine)
        with self.meter.scoring(at_once=True):
            return self.pruner.cut_now(engine.module)

    def _score(self, engine: zero.Engine, keep: Callable[[], None]) -> None:
        """Give the pruner the scores of all blocks. Collective."""
        pruning = self.run.pruning
        if pruning.score == "taylor":
            with self.meter.scoring(at_once=True):
                self.steps.score_by_weight_gradients(engine)
            keep()
        elif pruning.score != "random":
            for number in range(pruning.calibration_steps):
                self.steps.run(engine, number, calibrating=True)
                keep()
