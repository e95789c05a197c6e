"""One optimizer step over a global batch: forward, backward, scores, update, log; and how steps go wrong."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from apt_ds.config import schedules
from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.data.batching import Batch, collate
from apt_ds.data.packing import pack
from apt_ds.losses.training_loss import TrainingLoss
from apt_ds.models import adapter, loading
from apt_ds.pruning.pruner import Pruner
from apt_ds.runtime import collectives, heartbeat, profiler, zero
from apt_ds.runtime.signals import Stopped, StopSignals
from apt_ds.training.datasets import Data
from apt_ds.training.meter import Meter
from apt_ds.training.metrics import MetricsLogger


class TrainStep:
    """Takes steps with whatever engine it is handed.

    scoring: whether taps are on the engine's model; nonfinite_steps: how many in a row were not finite; asked: the
    number of a signal that some rank has received.
    """

    def __init__(
        self,
        run: RunConfig,
        data: Data,
        pruner: Pruner,
        training_loss: TrainingLoss,
        metrics_logger: MetricsLogger,
        meter: Meter,
        pad_id: int,
        stop_signals: StopSignals,
    ) -> None:
        self.run_config, self.data, self.pruner, self.training_loss = run, data, pruner, training_loss
        self.metrics_logger, self.meter, self.pad_id = metrics_logger, meter, pad_id
        self.device, self.dtype = zero.device(), loading.run_dtype(run)
        self.stop_signals = stop_signals
        self.scoring = False
        self.nonfinite_steps = 0
        self.asked = 0

    @profiler.timed(profiler.OTHER)
    def run(self, engine: zero.Engine, step: int, calibrating: bool = False) -> None:
        """One optimizer step over a global batch. Collective."""
        start, name = time.perf_counter(), f"{'calibration ' if calibrating else ''}step {step + 1}"
        heartbeat.phase(f"{name}: forward and backward")
        self.set_scoring(engine, calibrating or self.pruner.needs_scores(step))
        importance = not calibrating and self.pruner.needs_importance(step)
        rate = 0.0 if calibrating else self.learning_rate(step)
        zero.set_learning_rate(engine, rate)
        indices = self.data.order.indices(step)
        self.training_loss.begin(step, [self.data.train[i] for i in indices])
        loss = self.accumulate(engine, step)
        heartbeat.phase(f"{name}: update")
        own = self.pruner.observations(engine, self.scoring, importance)
        asked = torch.full((), float(self.stop_signals.asked > 0), device=self.device)
        distances = self.training_loss.pending()
        reduced = collectives.all_reduce_sum(torch.cat([torch.stack([loss.float(), asked]), distances, own]))
        # the one time a step waits for the device
        summed, signals, finite = torch.cat([reduced[:2], torch.isfinite(reduced).all().float()[None]]).tolist()
        # all ranks learn of a signal in the same step
        self.asked = max(collectives.gather_objects(self.stop_signals.asked)) if signals > 0 else 0
        mean = summed / self.training_loss.loss_denominator
        if finite:
            self.training_loss.observe(reduced[2 : 2 + len(distances)])
            self.pruner.observe(engine, reduced[2 + len(distances) :], self.scoring, importance)
        else:
            self.pruner.discard()
        applied = zero.step(engine)
        self.watch(name, mean, bool(finite) and applied)
        seconds = time.perf_counter() - start
        self.meter.step(seconds, self.pruner.kept() == 1.0, calibrating)
        if not calibrating:
            self.log(engine, step, mean, rate, seconds, indices)

    def accumulate(self, engine: zero.Engine, step: int) -> torch.Tensor:
        """Forward and backward over this rank's micro-batches; returns its summed loss of the task."""
        run, total = self.run_config, torch.zeros((), device=self.device)
        # the engine averages over ranks and accumulation: undo it, the loss is a mean over the global batch
        scale = collectives.world_size() * run.optim.gradient_accumulation_steps
        if self.training_loss.previews:
            self.training_loss.preview(engine, self.later(step), self.pruner.masks)
        for micro in range(run.optim.gradient_accumulation_steps):
            heartbeat.progress()
            made = self.on_host(step, micro)
            batch = self.moved(made)
            if self.scoring:
                first = (micro * collectives.world_size() + collectives.rank()) * run.optim.per_device_train_batch_size
                self.pruner.begin(made, self.dtype, first, self.training_loss.task_loss.decoder_mask(made))
            loss, summed = self.training_loss.micro_batch_loss(engine, batch, self.pruner.masks)
            engine.backward(loss * scale)
            self.pruner.end()
            total += summed
            if micro + 1 < run.optim.gradient_accumulation_steps:
                engine.step()
        return total

    def score_by_weight_gradients(self, engine: zero.Engine) -> None:
        """One backward pass over all calibration batches through an engine that trains every weight; no step.

        A signal ends it between two batches, with nothing scored. Collective.
        """
        run = self.run_config
        micros = [
            (s, m) for s in range(run.pruning.calibration_steps) for m in range(run.optim.gradient_accumulation_steps)
        ]
        rows = [i for s in range(run.pruning.calibration_steps) for i in self.data.order.indices(s)]
        self.training_loss.begin(0, [self.data.train[i] for i in rows])
        for number, (step, micro) in enumerate(micros, start=1):
            heartbeat.phase(f"calibration step {step + 1}: forward and backward")
            loss, _ = self.training_loss.micro_batch_loss(engine, self.micro_batch(step, micro), self.pruner.masks)
            engine.backward(loss * collectives.world_size() * len(micros))
            if number < len(micros):
                engine.step()
            if micro + 1 == run.optim.gradient_accumulation_steps:
                self.listen()
                if self.asked:
                    return
        heartbeat.phase("weighing blocks", limited=False)
        self.pruner.score_by_weight_gradients(engine)

    def set_scoring(self, engine: zero.Engine, on: bool) -> None:
        """Put the taps on or take them off; they are plain hooks, so the engine may stay."""
        if on == self.scoring:
            return
        self.scoring = on
        if on:
            self.pruner.scorer.install(engine.module)
        else:
            self.pruner.scorer.remove()

    def micro_batch(self, step: int, micro: int) -> Batch:
        """This rank's part of a global batch, on its device."""
        return self.moved(self.on_host(step, micro))

    def later(self, step: int) -> Iterator[Batch]:
        """This rank's micro-batches of a step, all but the first, on its device."""
        for micro in range(1, self.run_config.optim.gradient_accumulation_steps):
            heartbeat.progress()
            yield self.micro_batch(step, micro)

    @profiler.timed("data")
    def on_host(self, step: int, micro: int) -> Batch:
        """The same before it is sent: what is looked up in it needs no waiting for the device."""
        run = self.run_config
        own = self.data.order.micro(
            step, micro, collectives.rank(), collectives.world_size(), run.optim.per_device_train_batch_size
        )
        rows = [self.data.train[i] for i in own]
        return (
            pack(rows, self.pad_id, run.data.max_seq_length, run.model.one_row)
            if run.data.packing
            else collate(rows, self.pad_id)
        )

    @profiler.timed("data")
    def moved(self, made: Batch) -> Batch:
        """On this rank's device, but for the labels, where the loss looks up what is trained."""
        return replace(made.to(self.device), labels=made.labels)

    def learning_rate(self, step: int) -> float:
        run, total = self.run_config, self.data.total_steps
        warmup = schedules.warmup_steps(total, run.optim.warmup_ratio, run.optim.warmup_steps)
        return schedules.learning_rate(step, total, run.optim.learning_rate, run.optim.lr_scheduler_type, warmup)

    def watch(self, step: str, loss: float, good: bool) -> None:
        """Report a step that was skipped and count how many there were in a row."""
        # under fp16 the scaler looks for its scale by overflowing: no news while the loss is finite
        if good or (self.run_config.optim.fp16 and math.isfinite(loss)):
            self.nonfinite_steps = 0
            return
        self.nonfinite_steps += 1
        self.metrics_logger.warn(f"{step}: non-finite loss or gradient (loss {loss}); not applied, not scored")

    def listen(self) -> None:
        """Learn, outside of a step, of a signal that some rank has received. Collective."""
        self.asked = max(collectives.gather_objects(self.stop_signals.asked))

    def must_end(self) -> bool:
        """Whether a signal or too many bad steps in a row end the run at this boundary."""
        return self.asked > 0 or self.nonfinite_steps >= self.run_config.optim.max_nonfinite_steps

    def end(self, where: str) -> None:
        """End the run, which has been saved, if it must. where: the boundary, in words."""
        if self.nonfinite_steps >= self.run_config.optim.max_nonfinite_steps:
            raise UserError(
                f"{where}: {self.nonfinite_steps} steps in a row had a non-finite loss or gradient; lower "
                "--learning_rate, use --bf16, or look at the data of these steps"
            )
        if self.asked:
            raise Stopped(self.asked, f"stopped {where}: go on with --resume_from_checkpoint last")

    def log(self, engine: zero.Engine, step: int, loss: float, rate: float, seconds: float, indices: list[int]) -> None:
        if (step + 1) % self.run_config.output.logging_steps and step + 1 != self.data.total_steps:
            return
        ranks = list(adapter.ranks(engine.module).values()) or [0]
        tokens = sum(len(self.data.train[i]["input_ids"]) for i in indices)
        self.metrics_logger.step(
            {
                "step": step + 1,
                "loss": loss,
                "learning_rate": rate,
                **self.pruner.progress(step + 1),
                "ranks": {"min": min(ranks), "mean": sum(ranks) / len(ranks), "max": max(ranks)},
                "tokens_per_second": tokens / seconds,
                "peak_memory_bytes": self.meter.peak(),
                "seconds": {"step": seconds, "rebuild": self.meter.last_rebuild(), **self.pruner.take_seconds()},
            }
        )
