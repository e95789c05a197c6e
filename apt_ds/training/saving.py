"""When a run writes a checkpoint, and of what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.models.adapter import adapters
from apt_ds.pruning.pruner import Pruner
from apt_ds.runtime import collectives, heartbeat, zero
from apt_ds.training import checkpoint, engine_checkpoint
from apt_ds.training.checkpoint import Checkpoint
from apt_ds.training.meter import Meter
from apt_ds.training.metrics import MetricsLogger
from apt_ds.training.model_figures import ModelFigures
from apt_ds.training.run_engine import RunEngine
from apt_ds.training.run_state import Content, RunState


class Saver:
    """Writes the checkpoints of one run.

    Attributes:
        on_disk: step of the newest checkpoint. -1 without one.
        temporary: whether the newest checkpoint exists only for the case that the export fails.
    """

    def __init__(
        self,
        run: RunConfig,
        state: RunState,
        metrics_logger: MetricsLogger,
        meter: Meter,
        counts: dict[str, int],
        fingerprints: dict[str, str],
        base: dict[str, Any],
    ) -> None:
        self.run_config, self.state = run, state
        self.metrics_logger, self.meter = metrics_logger, meter
        self.counts, self.fingerprints, self.base = counts, fingerprints, base
        self.total = counts["total_steps"]
        self.on_disk = -1
        self.temporary = False

    def save_if_due(self, run_engine: RunEngine, step: int, ends: bool, unscored: Content | None = None) -> None:
        """Write a checkpoint after `step` updates if --save_steps asks for one or the run ends here. Collective.

        The last step is always saved, so that a failed export costs no training.

        Args:
            run_engine: has the engine.
            step: number of updates so far.
            ends: whether the run ends early at this boundary.
            unscored: the state before the scoring that has begun. Only an early end saves it.
        """
        if self.on_disk >= step:
            return
        due = unscored is None and is_due(step, self.total, self.run_config.output.save_steps)
        if due or ends:
            self.save(run_engine, step, unscored)
        elif step == self.total and unscored is None:
            self._save_for_export(run_engine, step)

    def _save_for_export(self, run_engine: RunEngine, step: int) -> None:
        """Save the last step until the model is written. A run without room for it goes on. Collective."""
        try:
            self.save(run_engine, step, limit=0)
        except UserError as error:
            self.metrics_logger.warn(f"the last step is not saved before the model is written: {error}")
        else:
            self.temporary = True

    def save(self, run_engine: RunEngine, step: int, unscored: Content | None = None, limit: int | None = None) -> None:
        """Write a checkpoint of this step boundary. Collective.

        Args:
            run_engine: has the engine.
            step: number of updates so far.
            unscored: the state before the scoring that has begun.
            limit: how many checkpoints stay. None takes --save_total_limit.

        Raises:
            UserError: the checkpoint cannot be written.
        """
        heartbeat.phase(f"step {step}: save", limited=False)
        engine = run_engine.engine
        shards = checkpoint.begin(self.metrics_logger.folder, step) if collectives.is_main() else None
        content = unscored or self.state.capture(engine)
        if unscored is None:
            self.state.complete(content, engine, shards)
        elif not run_engine.trains_weights_for_scoring_only():
            engine_checkpoint.add_unscored(engine, shards)
        shape = shape_of(engine.module, self.state.pruner)

        def write() -> None:
            saved = Checkpoint(
                step=step,
                run=self.run_config.flags(),
                counts=self.counts,
                fingerprints=self.fingerprints,
                values=content.values,
                tensors=content.tensors,
                shape=shape,
                metrics=self.metrics_logger.metrics(),
                base=self.base,
            )
            most = self.run_config.output.save_total_limit if limit is None else limit
            checkpoint.write(self.metrics_logger.folder, saved, most, shards)

        collectives.on_main(write)
        self.meter.forget_peak()
        self.on_disk = step

    def resume(self, saved: Checkpoint) -> None:
        """Take over a checkpoint that the run resumes from, if it lies in the run's output folder."""
        if Path(saved.path).parent == self.metrics_logger.folder:
            self.on_disk = saved.step
            self.temporary = saved.step == self.total and not is_due(self.total, self.total, saved.run["save_steps"])

    def add_evaluation(self, step: int, figures: ModelFigures) -> None:
        """Add the evaluation after the last step to its checkpoint. A failure is a warning."""
        if collectives.is_main() and self.on_disk == step:
            try:
                checkpoint.add_evaluation(self.metrics_logger.folder, step, dict(figures))
            except UserError as error:
                self.metrics_logger.warn(f"the last evaluation is not saved: {error}")

    def advice(self, step: int) -> str:
        """How to go on after a failed export, for the end of a message."""
        if self.on_disk < step:
            return ""
        return f". However, step {step} is saved: --resume_from_checkpoint {checkpoint.LAST} then only writes the model"

    def tidy(self) -> None:
        """Remove a temporary checkpoint once the model is written. On the first rank."""
        if self.temporary:
            checkpoint.remove(self.metrics_logger.folder, self.on_disk)


def is_due(step: int, total: int, every: int) -> bool:
    """Whether --save_steps asks for a checkpoint after `step` updates."""
    return every > 0 and (step % every == 0 or step == total > every)


def shape_of(model: nn.Module, pruner: Pruner) -> dict[str, Any]:
    """Sizes, ranks and dtype of the model, for people who read a manifest."""
    ranks = {path: zero.full_shape(layer.lora_A)[0] for path, layer in adapters(model)}
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    sizes = pruner.anatomy.sizes
    return {"counts": list(sizes.counts), "hidden": sizes.hidden, "ranks": ranks, "dtype": dtype}
