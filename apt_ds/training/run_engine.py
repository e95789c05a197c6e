"""The engine of a run, and how the run builds its next engine."""

from __future__ import annotations

from torch import nn

from apt_ds.config.run_config import RunConfig
from apt_ds.models import adapter
from apt_ds.models.trainables import attach_trainables
from apt_ds.pruning.pruner import Pruner
from apt_ds.runtime import zero
from apt_ds.runtime.zero import adam8bit
from apt_ds.training.train_step import TrainStep


class RunEngine:
    """Holds at most one engine at a time. A rebuild removes it, changes the model and builds another."""

    def __init__(self, run: RunConfig, config: zero.Config, pruner: Pruner, steps: TrainStep) -> None:
        self.run_config, self.config, self.pruner, self.steps = run, config, pruner, steps
        self.make_optimizer = adam8bit.maker(run)
        self._engine: zero.Engine | None = None
        self._monitor: zero.Monitor | None = None

    @property
    def engine(self) -> zero.Engine:
        """The engine. A rebuild in progress has none."""
        assert self._engine is not None
        return self._engine

    def attach_trainables(self, model: nn.Module, scores_by_weight_gradients: bool) -> None:
        """Decide what the next engine trains: adapters and task heads, or every weight."""
        run = self.run_config
        all_weights = run.optim.trainable == "all" or scores_by_weight_gradients
        attach_trainables(model, self.pruner.anatomy, run, run.adapter.rank, all_weights)

    def trains_weights_for_scoring_only(self) -> bool:
        """Whether every weight is trainable only for its gradient, which scores blocks."""
        return self.run_config.optim.trainable == "adapters" and not adapter.ranks(self.engine.module)

    def build(self, model: nn.Module, scoring: bool) -> None:
        """Install hooks on a model and put it under an engine. Collective."""
        self.steps.install_hooks(model, scoring)
        engine = zero.build(model, self._engine_config(), self.make_optimizer, self._monitor)
        self._engine, self._monitor = engine, engine.monitor

    def remove(self) -> nn.Module:
        """Destroy the engine and remove all hooks. Returns the model."""
        model = zero.destroy(self.engine)
        self._engine = None
        self.steps.remove_hooks()
        return model

    def _engine_config(self) -> zero.Config:
        """The run's DeepSpeed configuration. Scoring by weight gradients accumulates all calibration batches."""
        if not self.pruner.scores_by_weight_gradients():
            return self.config
        steps = self.run_config.pruning.calibration_steps
        longer = {key: self.config[key] * steps for key in ("gradient_accumulation_steps", "train_batch_size")}
        return self.config | longer
