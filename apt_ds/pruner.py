"""When blocks go and ranks grow: the state of one run's adaptive pruning (sections 3 to 5).

Two modes. *pretuning*: score `calibration_steps` global batches with the learning rate at 0, cut once, then
tune. *gradual*: score and decide in every step of the pruning phase while masks follow the decision; what is
dead is cut at each adjustment, and what the last decision condemned is cut once its masks have run out.
The pruner decides and remembers; `surgery.operate` does the work.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import nn

from apt_ds import dist, ranks, schedule, zero
from apt_ds.adapter import adapters
from apt_ds.anatomy import Anatomy
from apt_ds.config import RunConfig
from apt_ds.data.base import Batch
from apt_ds.masks import Masks
from apt_ds.salience import Salience
from apt_ds.search import Rules, cuttable, default_align, describe, search
from apt_ds.surgery import Plan


class Pruner:
    """Masks, scores and decisions of a run. Everything on it is the same on all ranks."""

    def __init__(self, run: RunConfig, anatomy: Anatomy, total_steps: int, device: torch.device) -> None:
        self.run, self.anatomy = run, anatomy
        align = run.align or default_align(anatomy)
        self.rules = Rules(run.kinds, run.structure, align, align)
        self.original = anatomy.cost(anatomy.sizes)
        self.prunes = run.pruning != "none" and run.sparsity > 0
        self.gradual = self.prunes and run.pruning == "gradual"
        self.phase = max(1, round(run.prune_ratio * total_steps))
        # the last decision's masks must run out while there are steps left to tune in
        self.mask_step = max(run.mask_step, 2.0 / max(1, total_steps - self.phase))
        self.masks = Masks(anatomy)
        self.salience = Salience(anatomy, run.salience_decay, run.outlier, device)
        self.decision = np.ones(anatomy.sizes.total(), dtype=bool)
        self.alive = np.arange(anatomy.sizes.total())  # the original number of every block still there
        self.random = np.random.default_rng(run.seed).random(anatomy.sizes.total())
        self.initial_adapters = 0
        self.importance: torch.Tensor | None = None
        self.settled = not self.prunes
        self.seconds = {"salience": 0.0, "search": 0.0}
        if self.prunes:
            search(self.scores(), anatomy, self.rules, self.budget(run.sparsity))  # a budget out of reach ends here

    def budget(self, removed: float) -> float:
        """Parameters a model with this fraction removed may keep."""
        return (1.0 - removed) * self.original

    def kept_parameters(self) -> int:
        """Prunable parameters physically there."""
        return self.anatomy.cost(self.anatomy.sizes)

    def kept(self) -> float:
        """The same as a fraction of the original."""
        return self.kept_parameters() / self.original

    def take_seconds(self) -> dict[str, float]:
        """Seconds spent on scores at step boundaries and on searching since the last call."""
        seconds, self.seconds = self.seconds, dict.fromkeys(self.seconds, 0.0)
        return seconds

    def target(self, step: int) -> float:
        """Fraction of the original parameters that should be kept after `step` updates."""
        if not self.prunes:
            return 1.0
        return schedule.kept_fraction(step, self.phase, self.run.sparsity) if self.gradual else 1 - self.run.sparsity

    def needs_scores(self, step: int) -> bool:
        """Whether gradual pruning scores blocks in this step."""
        return self.gradual and step < self.phase and self.run.score == "salience"

    def needs_importance(self, step: int) -> bool:
        """Whether adapters are still being compared."""
        return self.run.rank_growth and step < self.phase

    def dress(self, model: nn.Module, scoring: bool) -> None:
        """Put masks and, if `scoring`, taps on a model that wears none."""
        if not self.settled:
            self.masks.install(model)
        if scoring:
            self.salience.install(model)
        if not self.initial_adapters:
            self.initial_adapters = ranks.parameters(adapter_sizes(model))

    def undress(self) -> None:
        """Take masks and taps off."""
        self.salience.remove()
        self.masks.remove()

    def begin(self, batch: Batch, dtype: torch.dtype) -> None:
        """Before the forward pass of a micro-batch that counts for the scores."""
        self.salience.begin(batch.attention_mask, dtype)

    def end(self) -> None:
        """After its backward pass."""
        self.salience.end()

    @torch.no_grad()
    def observations(self, engine: zero.Engine, scoring: bool, importance: bool) -> torch.Tensor:
        """This rank's part of the step's masses and importances, flat: one all-reduce sums it over ranks."""
        parts = [torch.zeros(0, device=self.salience.device)]
        if scoring:
            parts.append(self.salience.masses.flatten())
        if importance:
            weights = [adapter.lora_B for _, adapter in adapters(engine.module)]
            parts.append(zero.weight_times_gradient(engine, weights))
        return torch.cat(parts)

    def observe(self, engine: zero.Engine, reduced: torch.Tensor, scoring: bool, importance: bool) -> None:
        """Take the reduced observations of a step with a finite loss into the averages. Collective."""
        start = time.perf_counter()
        count = self.salience.masses.numel() if scoring else 0
        if scoring:
            self.salience.masses.copy_(reduced[:count].view_as(self.salience.masses))
            if self.salience.stale:
                zero.settle(engine)
                self.salience.measure_outliers(engine.module)
            self.salience.update(1.0 / (zero.loss_scale(engine) * dist.world_size()))
        if importance:
            now, decay = reduced[count:], self.run.salience_decay
            old = self.importance if self.importance is not None else torch.zeros_like(now)
            self.importance = decay * old + (1 - decay) * now
        self.seconds["salience"] += time.perf_counter() - start

    def discard(self) -> None:
        """Forget the observations of a step with a non-finite loss."""
        self.salience.discard()

    def scores(self) -> np.ndarray:
        """What blocks are ranked by, float64 [blocks]; random scores are random densities."""
        if self.run.score == "random":
            return self.random * self.anatomy.prices(self.anatomy.sizes)
        return self.salience.scores()

    def decide(self, removed: float) -> np.ndarray:
        """Blocks to keep at this removed fraction, bool [blocks]."""
        start = time.perf_counter()
        keep = search(self.scores(), self.anatomy, self.rules, self.budget(removed))
        self.seconds["search"] += time.perf_counter() - start
        return keep

    def cut_now(self) -> Plan:
        """The plan of pre-tuning pruning: everything at once."""
        self.decision = self.decide(self.run.sparsity)
        self.masks.set(self.decision.astype(float))
        return Plan(keep=self.decision)

    def advance(self, step: int) -> None:
        """After update number `step`: decide anew while the phase lasts, move the masks."""
        if self.settled or not self.gradual:
            return
        if step <= self.phase:
            self.decision = self.decide(1.0 - self.target(step))
        self.masks.move_towards(self.decision, self.mask_step)

    def plan(self, step: int, last_step: int, model: nn.Module) -> Plan:
        """What to do after update number `step`: cut the dead, grow the top half of the adapters."""
        growing = self.run.rank_growth and schedule.is_adjustment(step, self.run.adjust_every, self.phase)
        grow = self._growth(step, model) if growing else {}
        return Plan(keep=self._due(step, last_step), grow=grow)

    def _due(self, step: int, last_step: int) -> np.ndarray | None:
        """Blocks that remain if this step cuts, else None."""
        if not self.gradual or self.settled:
            return None
        if step >= last_step:
            self.masks.set(self.decision.astype(float))
        dead = self.masks.dead() & ~self.decision
        if step >= self.phase and (dead == ~self.decision).all():
            return self.decision
        if step % self.run.adjust_every:
            return None
        return cuttable(dead, self.scores(), self.anatomy, self.rules)

    def _growth(self, step: int, model: nn.Module) -> dict[str, int]:
        if self.importance is None:
            return {}
        budget = schedule.rank_budget(step, self.phase, self.initial_adapters, self.run.rank_budget)
        return ranks.tune(self.importance.tolist(), adapter_sizes(model), budget, self.run.max_rank)

    def agree(self, step: int, plan: Plan) -> None:
        """Stop all ranks unless they have the same plan and masks. Collective."""
        keep = plan.keep if plan.keep is not None else np.zeros(0, dtype=bool)
        dist.agree(f"the plan of step {step}", dist.digest(keep, sorted(plan.grow.items()), self.masks.values))

    def follow(self, plan: Plan, anatomy: Anatomy, step: int) -> None:
        """Take over the anatomy after a cut. Masks and taps must be off."""
        if plan.keep is None or plan.keep.all():
            return
        self.salience.after_cut(anatomy, plan.keep)
        self.masks.after_cut(anatomy, plan.keep)
        self.random, self.decision = self.random[plan.keep], self.decision[plan.keep]
        self.alive = self.alive[plan.keep]
        self.anatomy = anatomy
        self.settled = not self.gradual or (step >= self.phase and bool(self.decision.all()))

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """(values, tensors) that `load_state` takes."""
        salience = self.salience
        tensors = {
            "alive": torch.from_numpy(self.alive),
            "masks": torch.from_numpy(self.masks.values),
            "decision": torch.from_numpy(self.decision),
            "average": salience.average.cpu(),
            "outliers": salience.outliers.cpu(),
        }
        if self.importance is not None:
            tensors["importance"] = self.importance.cpu()
        values = {"settled": self.settled, "stale": salience.stale, "initial_adapters": self.initial_adapters}
        return values | {"seconds": self.seconds}, tensors

    def load_state(self, anatomy: Anatomy, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Take over what `state` gave on a run with `anatomy`, on a pruner that has seen nothing yet."""
        self.alive, self.decision = tensors["alive"].numpy(), tensors["decision"].numpy()
        self.random = self.random[self.alive]
        self.anatomy, device = anatomy, self.salience.device
        self.masks, self.salience = Masks(anatomy), Salience(anatomy, self.run.salience_decay, self.run.outlier, device)
        self.masks.set(tensors["masks"].numpy())
        self.salience.average.copy_(tensors["average"])
        self.salience.outliers.copy_(tensors["outliers"])
        self.salience.stale = values["stale"]
        self.settled, self.initial_adapters = values["settled"], values["initial_adapters"]
        self.seconds = dict(values["seconds"])
        if "importance" in tensors:
            self.importance = tensors["importance"].to(device)

    def summary(self) -> dict[str, object]:
        """Actual sizes next to the target, for people."""
        return {
            "target_kept": 1.0 - self.run.sparsity if self.prunes else 1.0,
            "kept": self.kept(),
            "prunable_parameters": self.kept_parameters(),
            "align": self.rules.align_neurons,
            "sizes": describe(self.anatomy, self.anatomy.sizes),
        }


def adapter_sizes(model: nn.Module) -> list[ranks.AdapterSize]:
    """All adapters as the decider sees them, in module order."""
    return [
        ranks.AdapterSize(path, zero.full_shape(a.lora_A)[0], a.in_features + a.out_features)
        for path, a in adapters(model)
    ]
