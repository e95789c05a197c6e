"""When blocks go and ranks grow: the state of one run's adaptive pruning (sections 3 to 5).

Three modes. *pretuning*: score `calibration_steps` global batches with the learning rate at 0, cut once, then
tune. *posttuning*: the same in the middle of the run. *gradual*: score and decide in every step of the pruning phase
while masks follow the decision; what is dead is cut at each adjustment. The last cut waits until every mask has
arrived at 0 or 1, so that nothing jumps when masks come off. The pruner decides and remembers; `surgery.apply_plan`
does the work.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import nn

from apt_ds.config import schedules
from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.data.batching import Batch
from apt_ds.models.adapter import adapters
from apt_ds.models.blocks import Anatomy
from apt_ds.models.writable_sizes import EVERY_SIZE, Writable
from apt_ds.pruning import rank_growth
from apt_ds.pruning.budget_search import cuttable, describe, search
from apt_ds.pruning.fisher import Fisher
from apt_ds.pruning.masks import Masks
from apt_ds.pruning.rules import rules_of
from apt_ds.pruning.salience import Salience
from apt_ds.pruning.surgery import Plan
from apt_ds.pruning.taylor import block_importance
from apt_ds.runtime import collectives, profiler, zero


class Pruner:
    """Masks, scores and decisions of a run. Everything on it is the same on all ranks."""

    def __init__(
        self,
        run: RunConfig,
        anatomy: Anatomy,
        total_steps: int,
        device: torch.device,
        writable: Writable = EVERY_SIZE,
    ) -> None:
        self.run, self.anatomy = run, anatomy
        self.rules = rules_of(run, anatomy, writable)
        self.original = anatomy.num_parameters(anatomy.sizes)
        self.prunes = run.pruning.mode != "none" and run.pruning.sparsity > 0
        self.gradual = self.prunes and run.pruning.mode == "gradual"
        self.phase = schedules.pruning_phase(total_steps, run.pruning.pruning_phase)
        cuts_at_once = {"pretuning": 0, "posttuning": min(self.phase, total_steps - 1)}
        self.cut_step = cuts_at_once.get(run.pruning.mode) if self.prunes else None
        self.cut_done = False
        self.mask_step = schedules.mask_step(run.pruning.mask_step, total_steps, self.phase)
        self.masks = Masks(anatomy)
        if run.pruning.score == "fisher":
            batch = run.optim.global_batch(collectives.world_size())
            self.scorer: Fisher | Salience = Fisher(anatomy, batch, device)
        else:
            terms = (run.pruning.salience_decay, run.pruning.kurtosis, run.pruning.kurtosis_factor)
            mean = not self.gradual and run.pruning.calibration_average == "mean"
            self.scorer = Salience(anatomy, *terms, device, run.pruning.salience_product, mean)
        self.taylor = np.zeros(anatomy.sizes.total())
        self.decision = np.ones(anatomy.sizes.total(), dtype=bool)
        self.kept_ids = np.arange(anatomy.sizes.total())  # the original number of every block still there
        self.removed_in_cut = np.zeros(
            anatomy.sizes.total(), dtype=np.int64
        )  # the number of the cut that took it, 0: none
        self.random = np.random.default_rng(run.optim.seed).random(anatomy.sizes.total())
        self.scale = np.ones(anatomy.sizes.total())  # what every block there has been multiplied with
        self.initial_adapters = 0
        self.importance: torch.Tensor | None = None
        self.pruning_finished = not self.prunes
        self.seconds = {"salience": 0.0, "search": 0.0}
        if self.prunes:
            search(
                self.scores(), anatomy, self.rules, self.budget(run.pruning.sparsity)
            )  # a budget out of reach ends here

    def budget(self, removed: float) -> float:
        """Parameters a model with this fraction removed may keep."""
        return (1.0 - removed) * self.original

    def kept_parameters(self) -> int:
        """Prunable parameters physically there."""
        return self.anatomy.num_parameters(self.anatomy.sizes)

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
        if self.gradual:
            return schedules.kept_fraction(step, self.phase, self.run.pruning.sparsity)
        return 1.0 - self.run.pruning.sparsity if self.cut_done else 1.0

    def at_target(self) -> bool:
        """Whether all that should go is gone."""
        return not self.prunes or self.kept_parameters() <= self.budget(self.run.pruning.sparsity)

    def progress(self, step: int) -> dict[str, float]:
        """Sizes after `step` updates, for the log."""
        return {"kept": self.kept(), "kept_parameters": self.kept_parameters(), "target": self.target(step)}

    def scores_by_weight_gradients(self) -> bool:
        """Whether the cut that comes next is decided by gradients of all weights, which then must be trainable."""
        return self.prunes and self.run.pruning.score == "taylor" and not self.cut_done

    def score_by_weight_gradients(self, engine: zero.Engine) -> None:
        """Score by the weight gradients an engine holds after the boundary's backward. Collective."""
        self.taylor = block_importance(engine, self.anatomy).double().cpu().numpy()
        if not np.isfinite(self.taylor).all():
            raise UserError("calibration: non-finite loss or gradient; use --bf16 or look at the data of its steps")

    def needs_scores(self, step: int) -> bool:
        """Whether gradual pruning scores blocks in this step."""
        return self.gradual and step < self.phase and self.run.pruning.score == "salience"

    def needs_importance(self, step: int) -> bool:
        """Whether adapters are still being compared."""
        return self.run.adapter.grows and step < self.phase and not self.scores_by_weight_gradients()

    def install_hooks(self, model: nn.Module, scoring: bool) -> None:
        """Put masks and, if `scoring`, taps on a model that wears none."""
        if not self.pruning_finished:
            self.masks.install(model)
        if scoring:
            self.scorer.install(model)
        if not self.initial_adapters:
            self.initial_adapters = rank_growth.parameters(adapter_sizes(model))

    def remove_hooks(self) -> None:
        """Take masks and taps off."""
        self.scorer.remove()
        self.masks.remove()

    def begin(self, batch: Batch, dtype: torch.dtype, first: int, second: torch.Tensor | None = None) -> None:
        """Before a forward pass that counts for the scores.

        batch: best as it is on the host; first: place of its first example in the global batch; second: which tokens of
        a decoder count, [B, T].
        """
        self.scorer.begin(batch.attention_mask, dtype, first, second, batch.position_ids)

    def end(self) -> None:
        """After its backward pass."""
        self.scorer.end()

    @profiler.timed("salience")
    @torch.no_grad()
    def observations(self, engine: zero.Engine, scoring: bool, importance: bool) -> torch.Tensor:
        """This rank's part of the step's masses and importances, flat: one all-reduce sums it over ranks."""
        parts = [torch.zeros(0, device=self.scorer.device)]
        if scoring:
            parts.append(self.scorer.abs_sums.flatten())
        if importance:
            weights = [adapter.lora_B for _, adapter in adapters(engine.module)]
            parts.append(zero.weight_times_gradient(engine, weights))
        return torch.cat(parts)

    @profiler.timed("salience")
    def observe(self, engine: zero.Engine, reduced: torch.Tensor, scoring: bool, importance: bool) -> None:
        """Take the reduced observations of a step with a finite loss into the averages. Collective."""
        start = time.perf_counter()
        count = self.scorer.abs_sums.numel() if scoring else 0
        if scoring:
            self.scorer.abs_sums.copy_(reduced[:count].view_as(self.scorer.abs_sums))
            if isinstance(self.scorer, Salience) and self.scorer.stale:
                zero.release_gathered(engine)
                self.scorer.measure_outliers(engine.module)
            self.scorer.update(1.0 / (zero.loss_scale(engine) * collectives.world_size()))
        if importance:
            now, decay = reduced[count:], self.run.pruning.salience_decay
            old = self.importance if self.importance is not None else torch.zeros_like(now)
            self.importance = decay * old + (1 - decay) * now
        self.seconds["salience"] += time.perf_counter() - start

    def discard(self) -> None:
        """Forget the observations of a step with a non-finite loss."""
        self.scorer.discard()

    def scores(self) -> np.ndarray:
        """What blocks are ranked by, float64 [blocks]; random scores are random densities."""
        if self.run.pruning.score == "random":
            return self.random * self.anatomy.params_per_block(self.anatomy.sizes)
        return self.taylor if self.run.pruning.score == "taylor" else self.scorer.scores()

    @profiler.timed("search")
    def decide(self, removed: float) -> np.ndarray:
        """Blocks to keep at this removed fraction, bool [blocks]."""
        start = time.perf_counter()
        keep = search(self.scores(), self.anatomy, self.rules, self.budget(removed))
        self.seconds["search"] += time.perf_counter() - start
        return keep

    def cut_now(self, model: nn.Module) -> Plan:
        """The plan of a cut all at once; the engine on `model` must be settled. Collective.

        Raises:
            UserError: nothing was scored, since no step was finite.
        """
        if isinstance(self.scorer, Salience):
            self.scorer.conclude(model)
        if not self.scores().any():
            raise UserError(
                "no step before the cut had a finite loss and gradient, so that nothing tells blocks apart; give more "
                "--calibration_steps, with fp16 a lower initial_scale_power, or look for what is not finite"
            )
        self.decision, scale = self.decide(self.run.pruning.sparsity), None
        if isinstance(self.scorer, Fisher):
            self.decision = self.scorer.rearrange(self.decision)
            scale = self.scorer.fit_masks(model, self.decision)
        self.masks.set(self.decision.astype(float))
        self.cut_done = True
        return Plan(keep=self.decision, scale=scale)

    def advance(self, step: int) -> None:
        """After update number `step`: decide again while the phase lasts, move the masks.

        Masks wait for the first finite step: before it nothing tells blocks apart.

        Raises:
            UserError: the phase ends and no step was finite.
        """
        if self.pruning_finished or not self.gradual:
            return
        if isinstance(self.scorer, Salience) and schedules.is_adjustment(
            step, self.run.pruning.prune_every, self.phase
        ):
            # weights have moved, whether or not blocks are cut here
            self.scorer.refresh()
        if step <= self.phase:
            if self.scores().any():
                self.decision = self.decide(1.0 - self.target(step))
            elif step == self.phase:
                raise UserError(
                    f"no step of the pruning phase of {self.phase} steps had a finite loss and gradient, so that "
                    "nothing tells blocks apart. Give a higher --pruning_phase or, with fp16, a lower "
                    "initial_scale_power"
                )
            else:
                return
        self.masks.move_towards(self.decision, self.mask_step)

    def plan(self, step: int, last_step: int, model: nn.Module) -> Plan:
        """What to do after update number `step`: cut the dead, grow the top half of the adapters."""
        growing = self.run.adapter.grows and schedules.is_adjustment(step, self.run.pruning.prune_every, self.phase)
        grow = self._growth(step, model) if growing else {}
        return Plan(keep=self._due(step, last_step), grow=grow)

    def _due(self, step: int, last_step: int) -> np.ndarray | None:
        """Blocks that remain if this step cuts, else None. The last cut waits for all masks; then masks come off."""
        if not self.gradual or self.pruning_finished:
            return None
        if step >= last_step:
            self.masks.set(self.decision.astype(float))
        if step >= self.phase and self.masks.arrived(self.decision):
            if not self.decision.all():
                return self.decision
            # earlier cuts took all that goes, and masks of 1 change nothing
            self.pruning_finished = True
            self.masks.remove()
            return None
        dead = self.masks.fully_masked() & ~self.decision
        if step % self.run.pruning.prune_every or self.run.pruning.cuts_wait:
            return None
        return cuttable(dead, self.scores(), self.anatomy, self.rules)

    def _growth(self, step: int, model: nn.Module) -> dict[str, int]:
        if self.importance is None:
            return {}
        budget = schedules.rank_budget(step, self.phase, self.initial_adapters, self.run.adapter.rank_budget)
        sizes = adapter_sizes(model)
        if self.run.adapter.rank_growth == "even":
            return rank_growth.even(sizes, budget, self.run.adapter.max_rank)
        return rank_growth.grow_top_half(self.importance.tolist(), sizes, budget, self.run.adapter.max_rank)

    def agree(self, step: int, plan: Plan) -> None:
        """Stop all ranks unless they have the same plan and masks. Collective."""
        keep = plan.keep if plan.keep is not None else np.zeros(0, dtype=bool)
        collectives.agree(
            f"the plan of step {step}",
            collectives.digest(keep, plan.scale, sorted(plan.grow.items()), self.masks.values),
        )

    def follow(self, plan: Plan, anatomy: Anatomy, step: int) -> None:
        """Take over the anatomy after a cut. Masks and taps must be off."""
        if plan.keep is None or plan.keep.all():
            return
        self.scorer.after_cut(anatomy, plan.keep)
        self.masks.after_cut(anatomy, plan.keep)
        self.random, self.taylor = self.random[plan.keep], self.taylor[plan.keep]
        self.decision = self.decision[plan.keep]
        self.scale = (self.scale if plan.scale is None else self.scale * plan.scale)[plan.keep]
        self.removed_in_cut[self.kept_ids[~plan.keep]] = self.removed_in_cut.max() + 1
        self.kept_ids = self.kept_ids[plan.keep]
        self.anatomy = anatomy
        self.pruning_finished = not self.gradual or (
            step >= self.phase and self.masks.arrived(np.ones_like(self.decision))
        )

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """(values, tensors) that `load_state` takes. What a cut all at once is decided by is measured anew."""
        tensors = {
            "kept_ids": torch.from_numpy(self.kept_ids),
            "removed_in_cut": torch.from_numpy(self.removed_in_cut),
            "masks": torch.from_numpy(self.masks.values),
            "decision": torch.from_numpy(self.decision),
            "scale": torch.from_numpy(self.scale),
        }
        values = {
            "pruning_finished": self.pruning_finished,
            "initial_adapters": self.initial_adapters,
            "cut_done": self.cut_done,
        }
        values["seconds"] = self.seconds
        if isinstance(self.scorer, Salience):
            tensors |= {"average": self.scorer.average.cpu(), "outliers": self.scorer.outliers.cpu()}
            values["stale"] = self.scorer.stale
        if self.importance is not None:
            tensors["importance"] = self.importance.cpu()
        return values, tensors

    def load_state(self, anatomy: Anatomy, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Take over what `state` gave on a run with `anatomy`, on a pruner that has seen nothing yet."""
        self.kept_ids, self.decision = tensors["kept_ids"].numpy(), tensors["decision"].numpy()
        self.removed_in_cut = tensors["removed_in_cut"].numpy()
        self.scale = tensors["scale"].numpy()
        self.random, self.taylor = self.random[self.kept_ids], self.taylor[self.kept_ids]
        self.anatomy, self.masks = anatomy, Masks(anatomy)
        self.masks.set(tensors["masks"].numpy())
        self.scorer.resize(anatomy)
        device = self.scorer.device
        if isinstance(self.scorer, Salience):
            self.scorer.average = tensors["average"].to(device)
            self.scorer.outliers = tensors["outliers"].to(device)
            self.scorer.stale = values["stale"]
        self.pruning_finished, self.initial_adapters = values["pruning_finished"], values["initial_adapters"]
        self.cut_done, self.seconds = values["cut_done"], dict(values["seconds"])
        if "importance" in tensors:
            self.importance = tensors["importance"].to(device)

    def summary(self) -> dict[str, object]:
        """Actual sizes next to the target, for people."""
        return {
            "target_kept": 1.0 - self.run.pruning.sparsity if self.prunes else 1.0,
            "kept": self.kept(),
            "prunable_parameters": self.kept_parameters(),
            "align": self.rules.align_neurons,
            "sizes": describe(self.anatomy, self.anatomy.sizes),
        }


def adapter_sizes(model: nn.Module) -> list[rank_growth.AdapterSize]:
    """All adapters as the decider sees them, in module order."""
    return [
        rank_growth.AdapterSize(path, zero.full_shape(a.lora_A)[0], a.in_features + a.out_features)
        for path, a in adapters(model)
    ]
