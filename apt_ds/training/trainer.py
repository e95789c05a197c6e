"""A run from the loaded model to the written one: train, prune, evaluate, save, export."""

from __future__ import annotations

from typing import cast

from transformers import PreTrainedModel

from apt_ds.models.export.write import Exported
from apt_ds.models.initial_adapters import InitialAdapters
from apt_ds.pruning.bias_compensation import NO_BIAS, lacks_biases
from apt_ds.pruning.rules import coarse_notice
from apt_ds.pruning.surgery import Plan
from apt_ds.runtime import collectives, heartbeat, zero
from apt_ds.runtime.clock import seconds_after
from apt_ds.training import rebuild
from apt_ds.training.checkpoint import Checkpoint
from apt_ds.training.final_model import excluded_consumers, write_final_model
from apt_ds.training.run_figures import run_figures
from apt_ds.training.run_parts import RunParts
from apt_ds.training.run_state import Content, saved_after_cut
from apt_ds.training.summary_schema import Summary, WrittenModel
from apt_ds.training.trackers.layers import layers_of


class Trainer(RunParts):
    """One run. `begin` starts it, or `resume` continues it from a checkpoint. Then comes `run`."""

    def begin(self, initial: InitialAdapters | None = None) -> None:
        """Load the base model and build the first engine. Collective.

        Args:
            initial: what the adapters start from. None: new adapters.

        Raises:
            UserError: `initial` does not fit the model.
        """
        with self.meter.apart("loading"):
            model = self._load_model()
            self._attach(model, self.pruner.scores_by_weight_gradients(), initial)
            self._build(model)

    def resume(self, saved: Checkpoint) -> None:
        """Come to the step boundary of a checkpoint. Collective.

        Raises:
            UserError: the checkpoint belongs to another run or base model.
        """
        model = self._load_model()
        saved.check(self.run_config, self.data.counts(), self.saver.fingerprints)
        saved.check_base(self.saver.base)
        self.state.load_training_loss(saved)
        self._attach(model, self.pruner.scores_by_weight_gradients() and not saved_after_cut(saved))
        self.state.load_model(model, saved)
        self.done = saved.step
        self._build(model)
        self.state.load(self.engine, saved, self.run_config.optim.gradient_accumulation_steps)
        if saved.evaluation is not None:
            self.evaluations.load_after(saved.evaluation)
        self.saver.resume(saved)

    def run(self) -> Summary:
        """Train, prune, evaluate and write the model. Returns what the report completes. Collective."""
        self.train_loop()
        collectives.on_main(self.metrics_logger.check)
        after, new = self.evaluations.after(self.engine, self.done)
        if new:
            self.saver.add_evaluation(self.done, after)
        self._save_or_end()
        summary = self._summary()
        summary["after"] = {**after, **self.meter.final()}
        if self.teacher is not None:
            summary["training"]["distill"] = self.teacher.figures(self.training_loss.dense_teacher.distance)
        with self.meter.apart("writing"):
            summary["written"] = cast(WrittenModel, self.finish()._asdict())
        summary["training"]["memory_by_phase"] = self.meter.memory_by_phase()
        return summary

    def train_loop(self) -> None:
        """Run all steps that are not done yet. Collective."""
        if "before" not in self.evaluations.figures:
            self.training_loss.phase.set_initial_score(dict(self.evaluations.before(self.engine, self.data.describe())))
        self.early_end.begin()
        self._report_layers(self.done)
        for step in range(self.done, self.data.total_steps):
            if step == self.pruner.cut_step and not self.pruner.cut_done:
                self.cut_at_once(step)
                self.evaluations.after_cut(self.engine, step)
            self.train_step(step)
            self.adjust(step + 1)
            self.done = step + 1
            every = self.run_config.output.eval_steps
            if every > 0 and self.done % every == 0:
                self.evaluate(self.done)
            self._save_or_end()

    def train_step(self, step: int) -> None:
        """Run one optimizer step over a global batch. Collective."""
        self.steps.run(self.engine, step)

    def cut_at_once(self, step: int) -> None:
        """Score blocks at a learning rate of 0, cut them, and go on from `step` with a fresh optimizer. Collective."""
        unscored = self.state.snapshot(self.engine)
        if self.run_config.pruning.compensates and lacks_biases(self.engine.module, self.pruner.anatomy):
            self.metrics_logger.warn(NO_BIAS)
        self.rebuild(step, self.one_shot_cut.plan(self.run_engine, lambda: self._save_or_end(unscored)), fresh=True)

    def adjust(self, step: int) -> None:
        """After `step` updates: move masks, let the teacher learn, and cut or grow where it is due. Collective."""
        with self.meter.scoring():
            self.pruner.advance(step)
            plan = self.pruner.plan(step, self.data.total_steps, self.engine.module)
        if self.training_loss.phase.teacher_due(step):
            score = self.evaluate(step)
            with self.meter.scoring():
                self.training_loss.phase.update_teacher(score, self.engine.module)
        if plan or self.training_loss.phase.due(step):
            self.rebuild(step, plan)

    def rebuild(self, step: int, plan: Plan, fresh: bool = False) -> None:
        """Carry out a plan between two engines, and measure it. Collective.

        Args:
            step: number of updates so far.
            plan: what to cut and grow.
            fresh: start with new moments and counters.
        """
        heartbeat.phase(f"step {step}: rebuild", limited=False)
        start, kept = seconds_after(zero.device()), self.pruner.kept()
        self.meter.begin_rebuild()
        self.pruner.agree(step, plan)
        rebuild.rebuild(
            self.run_engine,
            self.pruner,
            self.training_loss.phase,
            self.repairer,
            plan,
            step,
            self.generators.surgery,
            fresh,
        )
        cut = self.pruner.kept() < kept
        if cut and self.run_config.pruning.repairs:
            self.score_history.model_changed()
        elif cut and not fresh:
            # it removes what masks had removed before, so that the score stays
            self.score_history.model_cut(step, self.pruner.at_target())
        self.meter.rebuilt(seconds_after(zero.device()) - start, cut=cut)
        self.metrics_logger.adjusted(step, self.pruner.kept(), plan)
        self._report_layers(step)
        if cut and self.pruner.at_target():
            if excluded := self._excluded():
                self.metrics_logger.warn(f"the kept sizes exclude consumers: {'; '.join(excluded)}")
            if notice := coarse_notice(self.run_config.pruning, self.pruner.kept()):
                self.metrics_logger.warn(notice)

    def _report_layers(self, step: int) -> None:
        """Report ranks and kept sizes after `step` updates to the trackers."""
        self.metrics_logger.layers(step, layers_of(self.engine.module, self.pruner.anatomy))

    def _excluded(self) -> list[str]:
        """Consumers that the kept sizes exclude."""
        return excluded_consumers(self.engine.module, self.pruner.anatomy, self.base, self.run_config)

    def evaluate(self, step: int) -> float:
        """The score after `step` updates. Collective."""
        return self.evaluations.score(self.engine, step, self.pruner.at_target())

    def _save_or_end(self, unscored: Content | None = None) -> None:
        """Save the run if it is time, and end it if it must end. Collective."""
        self.saver.save_if_due(self.run_engine, self.done, self.early_end.must_end(), unscored)
        self.early_end.end(f"after step {self.done}")

    def _summary(self) -> Summary:
        """The run's figures, all but the last evaluation. The engine must exist. Collective."""
        return run_figures(self, self._excluded())

    def finish(self) -> Exported:
        """Write the model, then free the engine's memory. Collective.

        Returns:
            What was written.

        Raises:
            UserError: the model cannot be written. The message says how to go on.
        """
        heartbeat.phase("writing the model", limited=False)
        written = write_final_model(self, cast(PreTrainedModel, self.run_engine.remove()))
        zero.free_memory()
        return written

    def tidy(self) -> None:
        """Remove the checkpoint that exists only for the case that the export fails. On the first rank."""
        self.saver.tidy()
