"""The story of a run: load, tune while pruning, write an ordinary smaller model."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from apt_ds import adapter, checkpoint, dist, models, moments8, pulse, quantized, resume, schedule, surgery, zero
from apt_ds.checkpoint import Checkpoint
from apt_ds.config import OPTIONS, RunConfig, UserError
from apt_ds.data.base import Batch, collate
from apt_ds.data.instructions import resolve_pad_id
from apt_ds.eval.losses import held_out_loss, perplexity
from apt_ds.export.write import export
from apt_ds.feed import Data
from apt_ds.journal import Journal, Meter
from apt_ds.models import Base
from apt_ds.objective import summed_loss, trained_tokens
from apt_ds.pruner import Pruner
from apt_ds.stopping import Stopped, Stopping
from apt_ds.surgery import Plan


class Trainer:
    """One run's engine, data position and pruner."""

    def __init__(
        self,
        run: RunConfig,
        base: Base,
        config: zero.Config,
        data: Data,
        pruner: Pruner,
        journal: Journal,
        saved: Checkpoint | None = None,
    ) -> None:
        self.run_config, self.base, self.config = run, base, config
        self.data, self.pruner, self.journal = data, pruner, journal
        self.device, self.dtype = zero.device(), models.run_dtype(run)
        self.pad_id = resolve_pad_id(base.tokenizer)
        self.generator = torch.Generator().manual_seed(run.seed + 1)
        self.meter = Meter(self.device)
        self.bad_steps = 0
        self.asked = 0  # the number of a signal that some rank has received
        self.done = 0  # steps
        self.figures: dict[str, Any] = {}
        self.stopping = Stopping()
        torch.manual_seed(run.seed)
        self.make_optimizer = moments8.maker(run)
        sharding = zero.shard_while_loading(config) if run.base_bits == 16 else None
        model = models.load_model(base, run)
        del sharding
        self.prints = data.prints() | {"model": models.fingerprint(model)}
        self.generation: GenerationConfig | None = model.generation_config
        if saved is not None:
            saved.check(run, data.counts(), self.prints)
            # a run that has cut by weight gradients trains adapters from there on
            pruner.cut_done = saved.values["pruner"]["cut_done"]
        self.prepare_weights(model)
        if saved is not None:
            resume.reshape(model, pruner, saved)
            self.done = saved.step
        model.train()
        self.scoring = pruner.needs_scores(self.done)
        pruner.dress(model, self.scoring)
        self.engine = zero.build(model, self.engine_config(), self.make_optimizer)
        if saved is not None:
            self.take_over(saved)

    def prepare_weights(self, model: nn.Module) -> None:
        """Decide what is trained from here on: adapters, or every weight."""
        run = self.run_config
        if run.tune == "all" or self.pruner.weighs():
            model.requires_grad_(True)
        else:
            adapter.attach(model, self.pruner.anatomy, run.targets, run.rank, run.seed)

    def engine_config(self) -> zero.Config:
        """The run's configuration; an engine that weighs accumulates all calibration batches."""
        if not self.pruner.weighs():
            return self.config
        steps = self.run_config.calibration_steps
        longer = {key: self.config[key] * steps for key in ("gradient_accumulation_steps", "train_batch_size")}
        return self.config | longer

    def run(self) -> dict[str, Any]:
        """Tune and prune; returns the figures of the report."""
        with self.stopping:
            self.tune()
        figures = self.figures
        figures["before"] |= self.meter.dense()
        figures["after"] = self.judge() | (self.meter.cut() if self.pruner.kept() < 1.0 else self.meter.dense())
        figures["pruning"] = self.pruner.summary() | {"rebuild_seconds": self.meter.rebuilds}
        figures["pruning"] |= quantized.summary(self.engine.module)
        self.finish()
        return figures

    def tune(self) -> None:
        """All steps that are not done yet."""
        if not self.figures:
            self.figures = {"before": self.judge(), "data": self.data.describe()}
        for step in range(self.done, self.data.total_steps):
            if step == self.pruner.cut_step and not self.pruner.cut_done:
                self.cut_at_once(step)
                self.figures["after_cut"] = self.judge()
            self.train_step(step)
            self.adjust(step + 1)
            self.done = step + 1
            every = self.run_config.save_steps
            bad = self.bad_steps >= self.run_config.max_bad_steps
            if self.asked or bad or (every > 0 and self.done % every == 0):
                self.save()
            self.give_up(f"step {self.done}")
            if self.asked:
                raise Stopped(self.asked, f"stopped after step {self.done}: go on with --resume_from_checkpoint last")

    def save(self) -> None:
        """Write a checkpoint of this step boundary. Collective."""
        pulse.phase(f"step {self.done}: save", limited=False)
        values, tensors, shape = resume.collect(self.engine, self.pruner, self.generator)
        values |= {"meter": self.meter.state(), "figures": self.figures, "bad_steps": self.bad_steps}

        def write() -> None:
            run = {name: getattr(self.run_config, name) for name in OPTIONS}
            made = Checkpoint(self.done, run, self.data.counts(), self.prints, values, tensors, shape)
            made.metrics = self.journal.metrics()
            checkpoint.write(self.journal.folder, made, self.run_config.save_total_limit)

        dist.on_main(write)

    def take_over(self, saved: Checkpoint) -> None:
        """Go on from where `save` was: what is not in the model's shapes. Collective."""
        resume.put_back(self.engine, self.generator, saved, self.run_config.gradient_accumulation_steps)
        self.meter.load_state(saved.values["meter"])
        self.figures, self.bad_steps = saved.values["figures"], saved.values["bad_steps"]

    def cut_at_once(self, step: int) -> None:
        """Score with the learning rate at 0, cut, go on tuning from `step` with a fresh optimizer."""
        score = self.run_config.score
        if score == "taylor":
            self.weigh()
        elif score != "random":
            for number in range(self.run_config.calibration_steps):
                self.train_step(number, calibrating=True)
                self.give_up(f"calibration step {number + 1}")
                if self.asked:
                    raise Stopped(self.asked, "stopped while scoring: go on from the last checkpoint, or start anew")
        zero.settle(self.engine)
        self.rebuild(step, self.pruner.cut_now(self.engine.module), fresh=True)

    def weigh(self) -> None:
        """One backward pass over all calibration batches through an engine that trains every weight; no step."""
        run = self.run_config
        micros = [(s, m) for s in range(run.calibration_steps) for m in range(run.gradient_accumulation_steps)]
        rows = [i for s in range(run.calibration_steps) for i in self.data.order.indices(s)]
        scale = dist.world_size() * len(micros) / sum(trained_tokens(self.data.train[i]["labels"]) for i in rows)
        for number, (step, micro) in enumerate(micros, start=1):
            self.engine.backward(summed_loss(self.engine, self.micro_batch(step, micro)) * scale)
            if number < len(micros):
                self.engine.step()
        self.pruner.weigh(self.engine)

    def set_scoring(self, on: bool) -> None:
        """Put the taps on or take them off; they are plain hooks, so the engine may stay."""
        if on == self.scoring:
            return
        self.scoring = on
        if on:
            self.pruner.scorer.install(self.engine.module)
        else:
            self.pruner.scorer.remove()

    def train_step(self, step: int, calibrating: bool = False) -> None:
        """One optimizer step over a global batch. Collective."""
        start, name = time.perf_counter(), f"{'calibration ' if calibrating else ''}step {step + 1}"
        pulse.phase(f"{name}: forward and backward")
        self.set_scoring(calibrating or self.pruner.needs_scores(step))
        importance = not calibrating and self.pruner.needs_importance(step)
        rate = 0.0 if calibrating else self.learning_rate(step)
        zero.set_learning_rate(self.engine, rate)
        indices = self.data.order.indices(step)
        tokens = sum(trained_tokens(self.data.train[i]["labels"]) for i in indices)
        loss = self.accumulate(step, tokens)
        pulse.phase(f"{name}: update")
        own = self.pruner.observations(self.engine, self.scoring, importance)
        asked = torch.tensor(float(self.stopping.asked > 0), device=self.device)
        reduced = dist.all_reduce_sum(torch.cat([torch.stack([loss.float(), asked]), own]))
        # all ranks learn of a signal in the same step
        self.asked = max(dist.gather_objects(self.stopping.asked)) if reduced[1] > 0 else 0
        mean, finite = reduced[0].item() / tokens, bool(torch.isfinite(reduced).all())
        if finite:
            self.pruner.observe(self.engine, reduced[2:], self.scoring, importance)
        else:
            self.pruner.discard()
        applied = zero.step(self.engine)
        self.watch(name, mean, finite and applied)
        seconds = time.perf_counter() - start
        self.meter.step(seconds, dense=self.pruner.kept() == 1.0)
        if not calibrating:
            self.log(step, mean, rate, seconds, indices)

    def accumulate(self, step: int, tokens: int) -> torch.Tensor:
        """Forward and backward over this rank's micro-batches; returns its summed loss."""
        run, total = self.run_config, torch.zeros((), device=self.device)
        # the engine averages over ranks and accumulation: undo it, the loss is a mean over the global batch's tokens
        scale = dist.world_size() * run.gradient_accumulation_steps / tokens
        for micro in range(run.gradient_accumulation_steps):
            pulse.beat()
            batch = self.micro_batch(step, micro)
            if self.scoring:
                first = (micro * dist.world_size() + dist.rank()) * run.per_device_train_batch_size
                self.pruner.begin(batch, self.dtype, first)
            loss = summed_loss(self.engine, batch)
            self.engine.backward(loss * scale)
            self.pruner.end()
            total += loss.detach()
            if micro + 1 < run.gradient_accumulation_steps:
                self.engine.step()
        return total

    def micro_batch(self, step: int, micro: int) -> Batch:
        """This rank's part of a global batch, on its device."""
        size = self.run_config.per_device_train_batch_size
        own = self.data.order.micro(step, micro, dist.rank(), dist.world_size(), size)
        return collate([self.data.train[i] for i in own], self.pad_id).to(self.device)

    def learning_rate(self, step: int) -> float:
        run, total = self.run_config, self.data.total_steps
        warmup = schedule.warmup_steps(total, run.warmup_ratio, run.warmup_steps)
        return schedule.learning_rate(step, total, run.learning_rate, run.lr_scheduler_type, warmup)

    def watch(self, step: str, loss: float, good: bool) -> None:
        """Report a step that was skipped and count how many there were in a row."""
        # under fp16 the scaler looks for its scale by overflowing: no news while the loss is finite
        if good or (self.run_config.fp16 and math.isfinite(loss)):
            self.bad_steps = 0
            return
        self.bad_steps += 1
        self.journal.warn(f"{step}: non-finite loss or gradient (loss {loss}); not applied, not scored")

    def give_up(self, step: str) -> None:
        """End the run after too many bad steps in a row."""
        if self.bad_steps >= self.run_config.max_bad_steps:
            raise UserError(
                f"{step}: {self.bad_steps} steps in a row had a non-finite loss or gradient; lower "
                "--learning_rate, use --bf16, or look at the data of these steps"
            )

    def adjust(self, step: int) -> None:
        """After update number `step`: move masks; cut, grow and rebuild where it is time. Collective."""
        self.pruner.advance(step)
        plan = self.pruner.plan(step, self.data.total_steps, self.engine.module)
        if plan:
            self.rebuild(step, plan)

    def rebuild(self, step: int, plan: Plan, fresh: bool = False) -> None:
        """Carry out a plan between two engines.

        fresh: forget moments and counters whatever `moments` says (after calibration).
        """
        pulse.phase(f"step {step}: rebuild", limited=False)
        start, kept = time.perf_counter(), self.pruner.kept()
        self.pruner.agree(step, plan)
        # weights were trainable only to be weighed
        bare = self.run_config.tune == "adapters" and not adapter.ranks(self.engine.module)
        if bare:
            state = zero.EngineState({}, 0.0)
        else:
            state = zero.take_state(self.engine, moments=not fresh and self.run_config.moments == "carry")
        if fresh:
            state.counters = dict.fromkeys(state.counters, 0)
        model = zero.destroy(self.engine)
        del self.engine
        self.pruner.undress()
        anatomy = surgery.operate(model, self.pruner.anatomy, plan, state, self.generator)
        self.pruner.follow(plan, anatomy, step)
        if bare:
            self.prepare_weights(model)
        zero.collect()
        self.scoring = self.pruner.needs_scores(step) and not fresh
        self.pruner.dress(model, self.scoring)
        self.engine = zero.build(model, self.engine_config(), self.make_optimizer)
        zero.put_state(self.engine, state)
        self.meter.rebuilt(time.perf_counter() - start, cut=self.pruner.kept() < kept)
        self.journal.adjusted(step, self.pruner.kept(), plan)

    def judge(self) -> dict[str, Any]:
        """Held-out loss and corpus perplexity of the model as it is. Collective."""
        pulse.phase("evaluation", limited=False)
        batch, engine = self.run_config.per_device_eval_batch_size, self.engine
        loss = held_out_loss(engine, self.data.held_out, batch, self.pad_id, self.device)
        found = {"held_out_loss": loss, "held_out_perplexity": math.exp(min(loss, 80.0))}
        found |= models.count_parameters(engine.module, self.run_config.export_bits)
        if self.data.corpus is not None:
            found["corpus_perplexity"] = perplexity(engine, self.data.corpus, max(1, batch // 4), self.device)
        self.meter.forget_peak()
        return found

    def log(self, step: int, loss: float, rate: float, seconds: float, indices: list[int]) -> None:
        if (step + 1) % self.run_config.logging_steps and step + 1 != self.data.total_steps:
            return
        ranks = list(adapter.ranks(self.engine.module).values()) or [0]
        tokens = sum(len(self.data.train[i]["input_ids"]) for i in indices)
        self.journal.step(
            {
                "step": step + 1,
                "loss": loss,
                "learning_rate": rate,
                "kept": self.pruner.kept(),
                "kept_parameters": self.pruner.kept_parameters(),
                "target": self.pruner.target(step + 1),
                "ranks": {"min": min(ranks), "mean": sum(ranks) / len(ranks), "max": max(ranks)},
                "tokens_per_second": tokens / seconds,
                "peak_memory_bytes": self.meter.peak(),
                "seconds": {"step": seconds, "rebuild": self.meter.last_rebuild(), **self.pruner.take_seconds()},
            }
        )

    def finish(self) -> None:
        """Write the model, then let go of engine and process group's memory."""
        pulse.phase("writing the model", limited=False)
        model: nn.Module = zero.destroy(self.engine)
        del self.engine
        self.pruner.undress()
        export(
            model,
            self.pruner.anatomy,
            self.base.config,
            self.generation,
            self.base.tokenizer,
            self.journal.folder / "model",
            self.run_config.export_bits,
        )
        zero.collect()
