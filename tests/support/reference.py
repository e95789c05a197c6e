"""The method in plain PyTorch: one process, torch's AdamW, no DeepSpeed. Every engine must agree with it.

Decisions and surgery are those of the package, which have tests of their own. The work of an engine is done here:
averaging the global batch, clipping, stepping, and carrying moments over a change of shapes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apt_ds.config.run_config import RunConfig
from apt_ds.config.schedules import learning_rate, warmup_steps
from apt_ds.data.batching import collate
from apt_ds.eval.held_out import held_out_loss
from apt_ds.losses.task_losses import summed_loss
from apt_ds.losses.token_losses import trained_tokens
from apt_ds.models import adapter, loading
from apt_ds.pruning import surgery
from apt_ds.pruning.pruner import Pruner
from apt_ds.pruning.rank_growth import adapter_sizes
from apt_ds.pruning.surgery import Plan
from apt_ds.runtime import zero
from apt_ds.runtime.zero import EngineState
from apt_ds.training.datasets import read_data
from apt_ds.training.run_data import Data
from tests.support.jobs import run_config


class Plain:
    """A model, its AdamW and its pruner, all on the device of this process."""

    def __init__(self, run: RunConfig, base: loading.Base, data: Data) -> None:
        self.run, self.data = run, data
        self.device = zero.device()
        self.pruner = Pruner(run, base.anatomy, data.total_steps, self.device)
        self.model = loading.load_model(base, run)
        adapter.attach(self.model, base.anatomy, run.targets, run.adapter.rank, run.optim.seed)
        self.model.train()
        self.generator = torch.Generator().manual_seed(run.optim.seed + 1)
        self.pruner.install_hooks(self.model, scoring=False)
        self.optimizer = self.fresh_optimizer()
        self.facts: dict[str, Any] = {"losses": [], "ranks": [], "kept": []}

    def fresh_optimizer(self) -> torch.optim.AdamW:
        return torch.optim.AdamW((p for p in self.model.parameters() if p.requires_grad), lr=0.0, weight_decay=0.0)

    def step(self, step: int, calibrating: bool = False) -> None:
        """One update with the whole global batch as a single micro-batch."""
        pruner, run, total = self.pruner, self.run, self.data.total_steps
        scoring = calibrating or pruner.needs_scores(step)
        pruner.scorer.remove()
        if scoring:
            pruner.scorer.install(self.model)
        rows = [self.data.train[i] for i in self.data.order.indices(step)]
        tokens = sum(trained_tokens(row) for row in rows)
        on_host = collate(rows, 0)
        pruner.begin(on_host, torch.float32, 0)
        loss = summed_loss(self.model, replace(on_host.to(self.device), labels=on_host.labels)) / tokens
        loss.backward()
        pruner.end()
        if scoring:
            if pruner.scorer.stale:
                pruner.scorer.measure_outliers(self.model)
            pruner.scorer.update(1.0)
        if not calibrating and pruner.needs_importance(step):
            parts = [(a.lora_B * a.lora_B.grad).abs().sum() for _, a in adapter.adapters(self.model)]
            new, old = torch.stack(parts).detach(), pruner.growth.importance
            decay = run.pruning.salience_decay
            pruner.growth.importance = decay * (torch.zeros_like(new) if old is None else old) + (1 - decay) * new
        if calibrating:
            self.optimizer.zero_grad()
            return
        nn.utils.clip_grad_norm_(self.model.parameters(), run.optim.max_grad_norm)
        warmup = warmup_steps(total, run.optim.warmup_ratio, run.optim.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, total, run.optim.learning_rate, run.optim.lr_scheduler_type, warmup)
        self.optimizer.step()
        self.optimizer.zero_grad()
        ranks = [size.rank for size in adapter_sizes(self.model)]
        self.facts["losses"].append(loss.item())
        self.facts["ranks"].append(sum(ranks) / len(ranks))
        self.facts["kept"].append(pruner.kept())

    def operate(self, step: int, plan: Plan, fresh: bool = False) -> None:
        """Apply a plan. Moments follow their parameters by name."""
        keys = () if fresh else ("exp_avg", "exp_avg_sq")
        tensors: dict[str, dict[str, Tensor]] = {}
        count = 0.0
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                entry = self.optimizer.state.get(parameter, {})
                tensors[name] = {key: entry[key] for key in keys}
                count = float(entry["step"]) if keys else 0.0
        self.pruner.remove_hooks()
        state = EngineState(tensors, count)
        anatomy = surgery.apply_plan(self.model, self.pruner.anatomy, plan, state, self.generator)
        self.pruner.follow(plan, anatomy, step)
        self.pruner.install_hooks(self.model, scoring=False)
        self.optimizer = self.fresh_optimizer()
        if count:
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    self.optimizer.state[parameter] = {"step": torch.tensor(count), **state.tensors[name]}


def reference_run(folder: Path | str, flags: list[str]) -> dict[str, Any]:
    """The same facts that `jobs.runs` collects. Also a job of `multiprocess.py`."""
    run = run_config(str(folder), 0, False, flags)
    base = loading.find_base(run.model.model_name_or_path)
    data = read_data(run, base)
    plain = Plain(run, base, data)
    if plain.run.pruning.one_shot:
        for step in range(run.pruning.calibration_steps):
            plain.step(step, calibrating=True)
        plain.operate(0, plain.pruner.cut_now(plain.model), fresh=True)
    for step in range(data.total_steps):
        plain.step(step)
        plain.pruner.advance(step + 1)
        plan = plain.pruner.plan(step + 1, data.total_steps, plain.model)
        if plan:
            plain.operate(step + 1, plan)
    loss = held_out_loss(plain.model, data.held_out, base.task_type, 4, 0, plain.device)
    assert math.isfinite(loss)
    return plain.facts | {
        "scores": plain.pruner.scorer.scores().tolist(),
        "importance": plain.pruner.growth.importance.tolist(),
        "alive": plain.pruner.blocks.kept_ids.tolist(),
        "held_out": loss,
    }
