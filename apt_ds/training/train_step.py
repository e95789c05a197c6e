"""One optimizer step over a global batch: forward, backward, scores, update, metrics."""

from __future__ import annotations

import time
from typing import cast

import torch
from torch import nn

from apt_ds.config import schedules
from apt_ds.config.run_config import RunConfig
from apt_ds.data.step_layout import StepLayout
from apt_ds.losses.training_loss import TrainingLoss
from apt_ds.models import adapter, loading
from apt_ds.pruning import size_report
from apt_ds.pruning.layer_sizes import by_layer
from apt_ds.pruning.pruner import Pruner
from apt_ds.runtime import collectives, heartbeat, profiler, zero
from apt_ds.training.early_end import EarlyEnd
from apt_ds.training.meter import Meter
from apt_ds.training.metrics import MetricsLogger
from apt_ds.training.metrics_schema import MetricsLine
from apt_ds.training.micro_batches import MicroBatches
from apt_ds.training.pruning_figures import LayerSizes
from apt_ds.training.run_data import Data
from apt_ds.training.step_sums import StepSums, StepValues
from apt_ds.training.stream_batches import StreamBatches


class TrainStep:
    """Runs steps with the engine that it is given.

    Attributes:
        scoring: whether the scorer's hooks are on the engine's model.
        batches: micro-batches of the training set.
        calibration_batches: micro-batches that score before a one-shot cut. By default those of the training set.
    """

    def __init__(
        self,
        run: RunConfig,
        data: Data,
        pruner: Pruner,
        training_loss: TrainingLoss,
        metrics_logger: MetricsLogger,
        meter: Meter,
        early_end: EarlyEnd,
        pad_id: int,
    ) -> None:
        self.run_config, self.data, self.pruner, self.training_loss = run, data, pruner, training_loss
        self.metrics_logger, self.meter, self.early_end = metrics_logger, meter, early_end
        self.device, self.dtype = zero.device(), loading.run_dtype(run)
        self.batches = self._batches(pad_id)
        if data.calibration is not None:
            self.calibration_batches = MicroBatches(
                run, data.calibration.rows, data.calibration.order, pad_id, self.device
            )
        elif data.stream is not None or run.pruning.dense_teacher:
            # A stream begins at the first step, whatever step the training is at. Scores are of the task's loss.
            self.calibration_batches = self._batches(pad_id)
        else:
            self.calibration_batches = self.batches
        self.scoring = False

    def _batches(self, pad_id: int) -> MicroBatches:
        """Micro-batches of the training data from its first step on."""
        if self.data.stream is not None:
            return StreamBatches(self.run_config, self.data.stream, self.data.order, pad_id, self.device)
        return MicroBatches(self.run_config, self.data.train, self.data.order, pad_id, self.device)

    @profiler.timed(profiler.OTHER)
    def run(self, engine: zero.Engine, step: int, calibrating: bool = False) -> None:
        """Run one optimizer step over a global batch. Collective.

        Args:
            engine: trains the model.
            step: number of the step, from 0.
            calibrating: score blocks at a learning rate of 0 and write no metrics.
        """
        start, name = time.perf_counter(), f"{'calibration ' if calibrating else ''}step {step + 1}"
        heartbeat.phase(f"{name}: forward and backward")
        self.set_scoring(engine, calibrating or self.pruner.needs_scores(step))
        importance = not calibrating and self.pruner.needs_importance(step)
        rate = 0.0 if calibrating else self.learning_rate(step)
        zero.set_learning_rate(engine, rate)
        batches = self.calibration_batches if calibrating else self.batches
        self.training_loss.begin(step, batches.rows(step))
        if not calibrating:
            self.pruner.begin_step(step)
        loss = self.accumulate(engine, step, batches)

        heartbeat.phase(f"{name}: update")
        own = self.own_sums(engine, loss, importance)
        sums = own.unpack(collectives.all_reduce_sum(own.pack()))
        if self.scoring:  # scores are of the weights before the update
            values = self.read_sums(engine, sums)
            applied = zero.step(engine)
        else:  # the host starts the update while the device still computes gradients
            applied = zero.step(engine)
            values = self.read_sums(engine, sums)

        mean, seconds = values.loss / self.training_loss.loss_denominator, time.perf_counter() - start
        self.early_end.watch(name, mean, values.finite and applied)
        self.meter.step(seconds, self.pruner.kept() == 1.0, calibrating)
        if not calibrating:
            layout = batches.step(step).layout
            self.meter.rows(layout.tokens, layout.tensor_tokens)
            self.log(engine, step, mean, rate, seconds, layout)

    def accumulate(self, engine: zero.Engine, step: int, batches: MicroBatches) -> torch.Tensor:
        """Forward and backward over this rank's micro-batches.

        Returns:
            The task's loss summed over this rank's examples, fp32 [].
        """
        total = torch.zeros((), device=self.device)
        # The engine averages over ranks and micro-batches. The loss is already a mean over the global batch.
        scale = collectives.world_size() * batches.per_step
        if self.training_loss.distillation.previews:
            self.training_loss.distillation.preview(engine, batches.after_first(step), self.pruner.masks)
        for micro in range(batches.per_step):
            heartbeat.progress()
            on_host = batches.on_host(step, micro)
            batch = batches.taught(batches.to_device(on_host))
            if self.scoring:
                decoder_mask = self.training_loss.task_loss.decoder_mask(on_host)
                self.pruner.begin(on_host, self.dtype, batches.example_offset(micro), decoder_mask)
            loss, loss_sum = self.training_loss.micro_batch_loss(engine, batch, self.pruner.masks)
            engine.backward(loss * scale)
            self.pruner.end()
            total += loss_sum
            if micro + 1 < batches.per_step:
                engine.step()
        return total

    def own_sums(self, engine: zero.Engine, loss: torch.Tensor, importance: bool) -> StepSums:
        """This rank's parts of the step's sums."""
        block_sums, adapter_importances = self.pruner.observations(engine, self.scoring, importance)
        return StepSums(
            loss=loss,
            stop=torch.full((), float(self.early_end.received), device=self.device),
            teacher_distances=self.training_loss.pending(),
            block_sums=block_sums,
            adapter_importances=adapter_importances,
        )

    def read_sums(self, engine: zero.Engine, sums: StepSums) -> StepValues:
        """Wait for the device, read the sums of a step, and give them to the loss and the pruner. Collective."""
        values = sums.read()
        self.early_end.listen_if(values.stop_ranks)
        if values.finite:
            self.training_loss.observe(values.teacher_distances)
            self.pruner.observe(engine, sums.block_sums, sums.adapter_importances)
        else:
            self.pruner.discard()
        return values

    def score_by_weight_gradients(self, engine: zero.Engine) -> None:
        """Run one backward pass over all calibration batches and score blocks by it. No step follows. Collective.

        The engine trains every weight. A signal ends the pass between two steps, and no block is scored.
        """
        steps, batches = self.run_config.pruning.calibration_steps, self.calibration_batches
        per_step = batches.per_step
        self.training_loss.begin(0, [row for step in range(steps) for row in batches.rows(step)])
        scale = collectives.world_size() * steps * per_step
        for step in range(steps):
            for micro in range(per_step):
                heartbeat.phase(f"calibration step {step + 1}: forward and backward")
                batch = batches.on_device(step, micro)
                loss, _ = self.training_loss.micro_batch_loss(engine, batch, self.pruner.masks)
                engine.backward(loss * scale)
                if (step, micro) != (steps - 1, per_step - 1):
                    engine.step()
            self.early_end.listen()
            if self.early_end.signal:
                return
        heartbeat.phase("scoring blocks by weight gradients", limited=False)
        self.pruner.score_by_weight_gradients(engine)

    def close(self) -> None:
        """End the threads that make batches ahead."""
        self.batches.close()
        self.calibration_batches.close()

    def install_hooks(self, model: nn.Module, scoring: bool) -> None:
        """Put masks, teacher hooks and, if `scoring`, the scorer's hooks on a model without hooks. Collective."""
        self.scoring = scoring
        self.pruner.install_hooks(model, scoring)
        self.training_loss.install_hooks(model)

    def remove_hooks(self) -> None:
        """Remove all hooks from the model."""
        self.pruner.remove_hooks()
        self.training_loss.remove_hooks()

    def set_scoring(self, engine: zero.Engine, scoring: bool) -> None:
        """Install or remove the scorer's hooks. The engine stays."""
        if scoring == self.scoring:
            return
        self.scoring = scoring
        if scoring:
            self.pruner.scorer.install(engine.module)
        else:
            self.pruner.scorer.remove()

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step by the run's schedule."""
        optim, total = self.run_config.optim, self.data.total_steps
        warmup = schedules.warmup_steps(total, optim.warmup_ratio, optim.warmup_steps)
        return schedules.learning_rate(step, total, optim.learning_rate, optim.lr_scheduler_type, warmup)

    def log(self, engine: zero.Engine, step: int, loss: float, rate: float, seconds: float, layout: StepLayout) -> None:
        """Write a line of metrics if --logging_steps asks for one. The last step always has one."""
        if (step + 1) % self.run_config.output.logging_steps and step + 1 != self.data.total_steps:
            return
        ranks = list(adapter.ranks(engine.module).values()) or [0]
        progress, boundary_seconds = size_report.progress(self.pruner, step + 1), self.pruner.take_seconds()
        rebuild_seconds, is_first = self.meter.last_rebuild(), step < self.run_config.output.logging_steps
        line: MetricsLine = {
            "step": step + 1,
            "loss": loss,
            "learning_rate": rate,
            "kept": progress["kept"],
            "kept_parameters": int(progress["kept_parameters"]),
            "target": progress["target"],
            "ranks": {"min": min(ranks), "mean": sum(ranks) / len(ranks), "max": max(ranks)},
            "tokens_per_second": layout.tokens / seconds,
            "non_padding": layout.tokens / layout.tensor_tokens,
            "peak_memory_bytes": self.meter.peak(),
            "seconds": {
                "step": seconds,
                "rebuild": rebuild_seconds,
                "salience": boundary_seconds["salience"],
                "search": boundary_seconds["search"],
            },
        }
        if is_first:
            line["sizes_before"] = cast(LayerSizes, by_layer(self.pruner.anatomy, self.pruner.original_sizes))
        if is_first or rebuild_seconds:
            line["sizes"] = cast(LayerSizes, by_layer(self.pruner.anatomy, self.pruner.anatomy.sizes))
        if (distance := self.training_loss.dense_teacher.distance) is not None:
            line["teacher_distance"] = distance
        self.metrics_logger.step(line)
