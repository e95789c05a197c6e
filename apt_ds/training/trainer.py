"""The story of a run: load, tune while pruning, write an ordinary smaller model."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from apt_ds.config import schedules
from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.data.instructions import resolve_pad_id
from apt_ds.eval.evaluator import Evaluator
from apt_ds.losses.training_loss import TrainingLoss
from apt_ds.models import adapter, fingerprint, loading, quantization, task_heads
from apt_ds.models.base_config import decisive
from apt_ds.models.export.write import export
from apt_ds.models.loading import Base
from apt_ds.pruning import surgery
from apt_ds.pruning.pruner import Pruner
from apt_ds.pruning.surgery import Plan
from apt_ds.runtime import collectives, heartbeat, profiler, zero
from apt_ds.runtime.signals import StopSignals
from apt_ds.runtime.zero import adam8bit
from apt_ds.training import checkpoint, run_state
from apt_ds.training.checkpoint import Checkpoint
from apt_ds.training.datasets import Data
from apt_ds.training.meter import Meter
from apt_ds.training.metrics import MetricsLogger
from apt_ds.training.score_history import ScoreHistory
from apt_ds.training.train_step import TrainStep


class Trainer:
    """One run's engine, data position and pruner."""

    def __init__(
        self,
        run: RunConfig,
        base: Base,
        config: zero.Config,
        data: Data,
        pruner: Pruner,
        metrics_logger: MetricsLogger,
        saved: Checkpoint | None = None,
        stop_signals: StopSignals | None = None,
    ) -> None:
        heartbeat.phase("loading", limited=False)
        self.run_config, self.base, self.config = run, base, config
        self.data, self.pruner, self.metrics_logger = data, pruner, metrics_logger
        pad_id = resolve_pad_id(base.tokenizer)
        self.written = loading.written_dtype(base, run)
        self.judged = Evaluator(run, base.kind, data.held_out, data.task_evaluator, data.corpus, pad_id, self.written)
        self.generator = torch.Generator().manual_seed(run.optim.seed + 1)
        self.meter = Meter(zero.device())
        self.done = 0  # steps
        self.on_disk = -1  # step of the newest checkpoint
        self.temporary = False  # that one is there for the export alone
        self.figures: dict[str, Any] = {}
        self.base_fields = decisive(base.config)
        self.score_history = ScoreHistory(run.output.reference_score)
        self.training_loss = TrainingLoss(run, base.kind, pruner.anatomy, pruner.phase, zero.device())
        self.steps = TrainStep(
            run, data, pruner, self.training_loss, metrics_logger, self.meter, pad_id, stop_signals or StopSignals()
        )
        profiler.NOW.start(zero.device(), run.output.profile)
        torch.manual_seed(run.optim.seed)
        self.make_optimizer = adam8bit.maker(run)
        sharding = zero.shard_while_loading(config) if run.model.base_bits == 16 else None
        model = loading.load_model(base, run)
        del sharding
        self.fingerprints = data.fingerprints() | {"model": fingerprint.fingerprint(model)}
        self.generation: GenerationConfig | None = model.generation_config if model.can_generate() else None
        if saved is not None:
            saved.check(run, data.counts(), self.fingerprints)
            saved.check_base(self.base_fields)
            # a run that has cut by weight gradients trains adapters from there on
            pruner.cut_done = saved.values["pruner"]["cut_done"]
            self.training_loss.load_state_dict(saved.values["training_loss"], saved.tensors.get("training_loss", {}))
        self.prepare_weights(model)
        pruner.anatomy = self.training_loss.prepare(model, pruner.anatomy)
        if saved is not None:
            run_state.reshape(model, pruner, saved)
            self.done = saved.step
        model.train()
        self.steps.scoring = pruner.needs_scores(self.done)
        pruner.install_hooks(model, self.steps.scoring)
        self.training_loss.install_hooks(model)
        self.engine = zero.build(model, self.engine_config(), self.make_optimizer)
        if saved is not None:
            self.take_over(saved)

    def prepare_weights(self, model: nn.Module) -> None:
        """Decide what is trained from here on: adapters and heads, or every weight."""
        run = self.run_config
        if run.optim.trainable == "all" or self.pruner.scores_by_weight_gradients():
            model.requires_grad_(True)
        else:
            adapter.attach(model, self.pruner.anatomy, run.targets, run.adapter.rank, run.optim.seed)
            task_heads.attach(model, self.pruner.anatomy)

    def engine_config(self) -> zero.Config:
        """The run's configuration; an engine that weighs accumulates all calibration batches."""
        if not self.pruner.scores_by_weight_gradients():
            return self.config
        steps = self.run_config.pruning.calibration_steps
        longer = {key: self.config[key] * steps for key in ("gradient_accumulation_steps", "train_batch_size")}
        return self.config | longer

    def run(self) -> dict[str, Any]:
        """Tune and prune; returns the figures of the report."""
        self.train_loop()
        after = self.judge_last()
        self.keep()
        figures = self.figures
        figures["before"] |= self.meter.dense()
        figures["after"] = after | self.meter.final()
        figures["pruning"] = self.pruner.summary() | {"rebuild_seconds": self.meter.rebuilds}
        figures["pruning"] |= quantization.summary(self.engine.module)
        figures["pruning"]["rebuild_peak_bytes"] = self.meter.rebuild_peaks
        if self.run_config.output.profile:
            figures["profile"] = profiler.NOW.summary()
        figures["training"] = self.meter.whole() | self.score_history.summary()
        self.finish()
        return figures

    def train_loop(self) -> None:
        """All steps that are not done yet."""
        if not self.figures:
            self.figures = {"before": self.judge(), "data": self.data.describe()}
            self.training_loss.set_initial_score(self.figures["before"])
        self.steps.stop_signals.begin()
        for step in range(self.done, self.data.total_steps):
            if step == self.pruner.cut_step and not self.pruner.cut_done:
                self.cut_at_once(step)
                self.figures["after_cut"] = self.judge()
            self.train_step(step)
            self.adjust(step + 1)
            self.done = step + 1
            if self.run_config.output.eval_steps > 0 and self.done % self.run_config.output.eval_steps == 0:
                self.evaluate(self.done)
            self.keep()

    def keep(self, unscored: run_state.State | None = None) -> None:
        """Save where it is time to, or the run ends here; end it if it must. Collective.

        The last step is always saved, so that a failed export costs no training.
        unscored: the run as it was before the scoring that is under way.
        """
        run, total = self.run_config, self.data.total_steps
        due = unscored is None and is_due(self.done, total, run.output.save_steps)
        if self.on_disk < self.done and (due or self.steps.must_end()):
            self.save(unscored)
        elif self.on_disk < self.done == total and unscored is None:
            self.save_for_export()
        self.steps.end(f"after step {self.done}")

    def save_for_export(self) -> None:
        """Save the last step, which goes again once the model is written; a run without room goes on. Collective."""
        try:
            self.save(limit=0)
        except UserError as error:
            self.metrics_logger.warn(f"the last step is not saved before the model is written: {error}")
        else:
            self.temporary = True

    def around(self) -> run_state.State:
        """The run at this step boundary, all but what the engine trains. Collective."""
        values, tensors = run_state.capture_run_state(self.engine, self.pruner, self.generator)
        values |= {"meter": self.meter.state(), "figures": self.figures, "nonfinite_steps": self.steps.nonfinite_steps}
        values["score_history"] = self.score_history.state()
        values["started"] = self.data.now.isoformat() if self.data.now else ""
        values["training_loss"], snapshot = self.training_loss.state_dict()
        tensors |= {"training_loss": snapshot} if snapshot else {}
        return values, tensors

    def save(self, unscored: run_state.State | None = None, limit: int | None = None) -> None:
        """Write a checkpoint of this step boundary. limit: how many may be kept, None: as the run says. Collective."""
        heartbeat.phase(f"step {self.done}: save", limited=False)
        begun = checkpoint.begin(self.metrics_logger.folder, self.done) if collectives.is_main() else None
        values, tensors = unscored or self.around()
        if unscored is None:
            run_state.add_trained(values, self.engine, begun)
        else:
            run_state.add_unscored(self.engine, self.trains_weights_for_scoring_only(), begun)
        shape = run_state.shape(self.engine.module, self.pruner)

        def write() -> None:
            run = self.run_config.flags()
            made = Checkpoint(self.done, run, self.data.counts(), self.fingerprints, values, tensors, shape)
            made.metrics, made.base = self.metrics_logger.metrics(), self.base_fields
            keep = self.run_config.output.save_total_limit if limit is None else limit
            checkpoint.write(self.metrics_logger.folder, made, keep, begun)

        collectives.on_main(write)
        self.meter.forget_peak()
        self.on_disk = self.done

    def take_over(self, saved: Checkpoint) -> None:
        """Go on from where `save` was: what is not in the model's shapes. Collective."""
        run_state.restore(self.engine, self.generator, saved, self.run_config.optim.gradient_accumulation_steps)
        self.meter.load_state(saved.values["meter"])
        self.score_history.load_state(saved.values["score_history"])
        self.figures, self.steps.nonfinite_steps = saved.values["figures"], saved.values["nonfinite_steps"]
        if saved.evaluation is not None:
            self.figures["after"] = saved.evaluation
        if Path(saved.path).parent == self.metrics_logger.folder:
            self.on_disk, total = saved.step, self.data.total_steps
            self.temporary = saved.step == total and not is_due(total, total, saved.run["save_steps"])

    def cut_at_once(self, step: int) -> None:
        """Score with the learning rate at 0, cut, go on tuning from `step` with a fresh optimizer."""
        score, unscored = self.run_config.pruning.score, copy.deepcopy(self.around())
        if score == "taylor":
            with self.meter.scoring():
                self.score_by_weight_gradients()
            self.keep(unscored)
        elif score != "random":
            for number in range(self.run_config.pruning.calibration_steps):
                self.train_step(number, calibrating=True)
                self.keep(unscored)
        zero.release_gathered(self.engine)
        with self.meter.scoring():
            plan = self.pruner.cut_now(self.engine.module)
        self.rebuild(step, plan, fresh=True)

    def train_step(self, step: int, calibrating: bool = False) -> None:
        """One optimizer step over a global batch. Collective."""
        self.steps.run(self.engine, step, calibrating)

    def score_by_weight_gradients(self) -> None:
        """Score by gradients of all weights. Collective."""
        self.steps.score_by_weight_gradients(self.engine)

    def trains_weights_for_scoring_only(self) -> bool:
        """Whether weights are trainable only to be weighed."""
        return self.run_config.optim.trainable == "adapters" and not adapter.ranks(self.engine.module)

    def adjust(self, step: int) -> None:
        """After update number `step`: move masks; cut, grow and rebuild where it is time. Collective."""
        with self.meter.scoring():
            self.pruner.advance(step)
            plan = self.pruner.plan(step, self.data.total_steps, self.engine.module)
        if self.training_loss.distilling and schedules.is_adjustment(
            step, self.run_config.pruning.prune_every, self.training_loss.distill_steps
        ):
            score = self.evaluate(step)
            with self.meter.scoring():
                self.training_loss.update_teacher(score, self.engine.module)
        if plan or self.training_loss.due(step):
            self.rebuild(step, plan)

    def rebuild(self, step: int, plan: Plan, fresh: bool = False) -> None:
        """Carry out a plan between two engines.

        fresh: forget moments and counters whatever `moments` says (after calibration).
        """
        heartbeat.phase(f"step {step}: rebuild", limited=False)
        start, kept = time.perf_counter(), self.pruner.kept()
        self.meter.begin_rebuild()
        self.pruner.agree(step, plan)
        trains_weights_for_scoring_only = self.trains_weights_for_scoring_only()
        if trains_weights_for_scoring_only:
            state = zero.EngineState({}, 0.0)
        else:
            state = zero.take_state(
                self.engine, moments=not fresh and self.run_config.pruning.optimizer_state == "carry"
            )
        if fresh:
            state.counters = dict.fromkeys(state.counters, 0)
        model = zero.destroy(self.engine)
        del self.engine
        self.pruner.remove_hooks()
        self.training_loss.remove_hooks()
        with self.training_loss.teacher_follows_surgery(state):
            anatomy = surgery.apply_plan(model, self.pruner.anatomy, plan, state, self.generator)
        self.pruner.follow(plan, anatomy, step)
        if self.training_loss.due(step):
            self.pruner.anatomy = self.training_loss.end(model, self.pruner.anatomy)
        if trains_weights_for_scoring_only:
            self.prepare_weights(model)
        zero.free_memory()
        self.steps.scoring = self.pruner.needs_scores(step) and not fresh
        self.pruner.install_hooks(model, self.steps.scoring)
        self.training_loss.install_hooks(model)
        self.engine = zero.build(model, self.engine_config(), self.make_optimizer)
        zero.put_state(self.engine, state)
        self.meter.rebuilt(time.perf_counter() - start, cut=self.pruner.kept() < kept)
        self.metrics_logger.adjusted(step, self.pruner.kept(), plan)

    def judge(self) -> dict[str, Any]:
        """All that is to be said of the model as it is. Collective."""
        heartbeat.phase("evaluation", limited=False)
        with self.meter.evaluation():
            found = self.judged.everything(self.engine)
        self.steps.listen()
        return found

    def judge_last(self) -> dict[str, Any]:
        """All that is to be said of the model after the last step, taken once. Collective."""
        if "after" in self.figures:
            # it may be written in other bits than the run that was saved would have
            return self.figures["after"] | self.judged.sizes(self.engine)
        after = self.judge()
        if collectives.is_main() and self.on_disk == self.done:
            try:
                checkpoint.add_evaluation(self.metrics_logger.folder, self.done, after)
            except OSError as error:
                self.metrics_logger.warn(f"the last evaluation is not saved: {error}")
        return after

    def evaluate(self, step: int) -> float:
        """The score after `step` updates, taken once. Collective."""
        if not self.score_history.knows(step):
            heartbeat.phase(f"step {step}: evaluation", limited=False)
            with self.meter.evaluation():
                score = self.judged.score(self.engine)
            self.score_history.take(step, score, self.meter.seconds, self.pruner.at_target())
            self.metrics_logger.warn(f"step {step}: score {score:.4f}")
            self.steps.listen()
        return self.score_history.score

    def finish(self) -> None:
        """Write the model, then let go of engine and process group's memory.

        Raises:
            UserError: it cannot be written; the message says how to go on.
        """
        heartbeat.phase("writing the model", limited=False)
        model: nn.Module = zero.destroy(self.engine)
        del self.engine
        self.pruner.remove_hooks()
        try:
            export(
                model,
                self.pruner.anatomy,
                self.base.config,
                self.generation,
                self.base.tokenizer,
                self.metrics_logger.folder / "model",
                self.base.kind,
                self.run_config.model.export_bits,
                self.written,
            )
        except UserError as error:
            raise UserError(f"{error}{self.go_on()}") from None
        except Exception:
            self.metrics_logger.warn(f"the model was not written{self.go_on()}")
            raise
        zero.free_memory()

    def go_on(self) -> str:
        """How to go on after a failed export, for the end of a message."""
        if self.on_disk < self.done:
            return ""
        return f"; step {self.done} is saved: --resume_from_checkpoint {checkpoint.LAST} then only writes the model"

    def tidy(self) -> None:
        """Remove the checkpoint that was there for the export alone. On the first rank."""
        if self.temporary:
            checkpoint.remove(self.metrics_logger.folder, self.done)


def is_due(step: int, total: int, every: int) -> bool:
    """Whether a checkpoint of `step` is one that the user asked for with --save_steps."""
    return every > 0 and (step % every == 0 or step == total > every)
