"""The parts of a run, and its model from the base to the first engine."""

from __future__ import annotations

import torch
from torch import nn
from transformers import GenerationConfig

from apt_ds.config.run_config import RunConfig
from apt_ds.data.special_tokens import resolve_pad_id
from apt_ds.eval.evaluator import Evaluator
from apt_ds.losses.training_loss import TrainingLoss
from apt_ds.models import fingerprint, loading
from apt_ds.models.base_config import decisive
from apt_ds.models.initial_adapters import InitialAdapters
from apt_ds.models.loading import Base
from apt_ds.pruning.pruner import Pruner
from apt_ds.runtime import heartbeat, profiler, zero
from apt_ds.runtime.signals import StopSignals
from apt_ds.training.dense_distillation import DenseDistillation
from apt_ds.training.early_end import EarlyEnd
from apt_ds.training.evaluations import Evaluations
from apt_ds.training.generators import Generators
from apt_ds.training.meter import Meter
from apt_ds.training.metrics import MetricsLogger
from apt_ds.training.one_shot_cut import OneShotCut
from apt_ds.training.repairing import Repairer
from apt_ds.training.run_data import Data
from apt_ds.training.run_engine import RunEngine
from apt_ds.training.run_state import RunState, Stateful
from apt_ds.training.saving import Saver
from apt_ds.training.score_history import ScoreHistory
from apt_ds.training.stream_batches import StreamBatches
from apt_ds.training.train_step import TrainStep


class RunParts:
    """The parts of one run. `Trainer` adds the loop.

    Attributes:
        done: number of optimizer steps so far.
    """

    def __init__(
        self,
        run: RunConfig,
        base: Base,
        config: zero.Config,
        data: Data,
        pruner: Pruner,
        metrics_logger: MetricsLogger,
        stop_signals: StopSignals | None = None,
    ) -> None:
        """Make the parts. No weight is loaded.

        Args:
            run: the options.
            base: the base model.
            config: DeepSpeed's configuration.
            data: the data sets.
            pruner: has not seen a step.
            metrics_logger: takes the metrics, and knows the output folder.
            stop_signals: signals that end the run early.
        """
        self.run_config, self.base, self.config, self.data = run, base, config, data
        self.pruner, self.metrics_logger = pruner, metrics_logger
        self.done = 0
        self.teacher: DenseDistillation | None = None
        pad_id = resolve_pad_id(base.tokenizer)
        self.written_dtype = loading.written_dtype(base, run)
        self.meter = Meter(zero.device())
        self.generators = Generators(run.optim.seed)
        self.early_end = EarlyEnd(run, stop_signals or StopSignals(), metrics_logger)
        evaluator = Evaluator(
            run, base.task_type, data.held_out, data.task_evaluator, data.texts, pad_id, self.written_dtype, data.mmlu
        )
        self.score_history = ScoreHistory(run.output.reference_score)
        self.evaluations = Evaluations(evaluator, self.score_history, self.meter, metrics_logger, self.early_end)
        self.training_loss = TrainingLoss(
            run, base.task_type, pruner.anatomy, pruner.phase, zero.device(), pruner.start
        )
        self.steps = TrainStep(
            run, data, pruner, self.training_loss, metrics_logger, self.meter, self.early_end, pad_id
        )
        self.run_engine = RunEngine(run, config, pruner, self.steps)
        self.one_shot_cut = OneShotCut(run, self.steps, pruner, self.meter)
        self.repairer = Repairer(run, self.training_loss.task_loss, self.steps.calibration_batches, metrics_logger.warn)
        self.state = RunState(pruner, self.training_loss, self.repairer, self._members(), data.now)

    def _members(self) -> dict[str, Stateful]:
        """What has a state beside the model, the pruner and the loss, by its name in a checkpoint."""
        members: dict[str, Stateful] = {
            "random": self.generators,
            "meter": self.meter,
            "score_history": self.score_history,
            "figures": self.evaluations,
            "nonfinite_steps": self.early_end,
            "metrics": self.metrics_logger,
            "one_shot_cut": self.one_shot_cut,
        }
        if isinstance(self.steps.batches, StreamBatches):
            members["stream"] = self.steps.batches
        return members

    def _load_model(self) -> nn.Module:
        """Load the base model, sharded under ZeRO-3, and take its fingerprint. Collective."""
        heartbeat.phase("loading", limited=False)
        run, data = self.run_config, self.data
        profiler.NOW.start(zero.device(), run.output.profile)
        torch.manual_seed(run.optim.seed)
        # transformers shards a model while it loads as long as this object exists
        sharding = zero.shard_while_loading(self.config) if run.model.base_bits == 16 else None
        model = loading.load_model(self.base, run)
        del sharding
        self.generation: GenerationConfig | None = model.generation_config if model.can_generate() else None
        fingerprints = data.fingerprints() | {"model": fingerprint.fingerprint(model)}
        if run.pruning.dense_teacher:
            self.teacher = DenseDistillation(run, self.base, self.config, data, self.steps.batches)
            fingerprints |= self.teacher.begin(model, fingerprints["model"])
        self.saver = Saver(
            run, self.state, self.metrics_logger, self.meter, data.counts(), fingerprints, decisive(self.base.config)
        )
        return model

    def _attach(
        self, model: nn.Module, scores_by_weight_gradients: bool, initial: InitialAdapters | None = None
    ) -> None:
        """Give the model its trainable weights and, with a teacher, the transform between their layers."""
        self.run_engine.attach_trainables(model, scores_by_weight_gradients)
        if initial is not None:
            initial.load(model)
        self.pruner.anatomy = self.training_loss.phase.prepare(model, self.pruner.anatomy)

    def _build(self, model: nn.Module) -> None:
        model.train()
        self.run_engine.build(model, scoring=self.pruner.needs_scores(self.done))
        self.training_loss.check(self.engine)
        # a forward pass without a backward one leaves weights gathered
        zero.release_gathered(self.engine)

    @property
    def engine(self) -> zero.Engine:
        """The engine that trains the model."""
        return self.run_engine.engine
