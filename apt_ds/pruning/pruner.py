"""The adaptive pruning of one run: a policy, a scorer, masks, rank growth and the plans they give (METHOD.md 3 to 5).

The policy says when (`policy.py`), the scorer says what matters (`scorer.py`), the search says which blocks remain
(`budget_search.py`). The pruner connects them and remembers. `surgery.apply_plan` carries out its plans.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apt_ds.config import schedules
from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.models.blocks import Anatomy
from apt_ds.models.writable_sizes import EVERY_SIZE, Writable
from apt_ds.pruning.bias_compensation import compensate
from apt_ds.pruning.block_history import BlockHistory
from apt_ds.pruning.budget_search import cuttable, search
from apt_ds.pruning.masks import Masks
from apt_ds.pruning.policy import CutAction, MaskAction
from apt_ds.pruning.rules import rules_of
from apt_ds.pruning.step_observer import StepObserver
from apt_ds.pruning.surgery import Plan
from apt_ds.runtime import collectives, notices, profiler, zero

Allocate = Callable[[np.ndarray, np.ndarray], np.ndarray]  # scores and a decision to a decision


class Pruner(StepObserver):
    """Masks, scores and decisions of a run. Everything on it is the same on all ranks.

    Attributes:
        decision: bool [blocks], the blocks to keep.
        blocks: the history of all cuts.
        pruning_finished: whether masks are off for good.
        compensated: paths of the layers whose bias a cut has changed. A checkpoint holds these biases.

    Raises:
        UserError: no model that the options allow meets the budget.
    """

    def __init__(
        self,
        run: RunConfig,
        anatomy: Anatomy,
        total_steps: int,
        device: torch.device,
        writable: Writable = EVERY_SIZE,
    ) -> None:
        super().__init__(run, anatomy, total_steps, device)
        self.anatomy = anatomy
        self.rules = rules_of(run, anatomy, writable)
        self.original_sizes, self.original = anatomy.sizes, anatomy.num_parameters(anatomy.sizes)
        self.phase, self.start, self.cut_step = self.policy.phase, self.policy.start, self.policy.cut_step
        self.mask_step = schedules.mask_step(run.pruning.mask_step, total_steps, self.phase)
        self.decision = np.ones(anatomy.sizes.total(), dtype=bool)
        self.blocks = BlockHistory(anatomy.sizes.total())
        self.pruning_finished = not run.pruning.prunes
        self.compensated: list[str] = []
        if run.pruning.prunes:
            # a budget that cannot be met ends the run here
            search(self.scores(), anatomy, self.rules, self.budget(run.pruning.sparsity))

    # Sizes

    def budget(self, removed: float) -> float:
        """Parameters that a model with this fraction removed may keep."""
        return (1.0 - removed) * self.original

    def kept_parameters(self) -> int:
        """Prunable parameters of the model as it is. Masks do not count."""
        return self.anatomy.num_parameters(self.anatomy.sizes)

    def kept(self) -> float:
        """`kept_parameters` as a fraction of the original."""
        return self.kept_parameters() / self.original

    def at_target(self) -> bool:
        """Whether the model meets the budget of the run."""
        return not self.run.pruning.prunes or self.kept_parameters() <= self.budget(self.run.pruning.sparsity)

    # Decisions

    def install_hooks(self, model: nn.Module, scoring: bool) -> None:
        """Put masks and, if `scoring`, the scorer's hooks on a model without hooks."""
        if not self.pruning_finished:
            self.masks.install(model)
        if scoring:
            self.scorer.install(model)
        self.growth.begin(model)

    def remove_hooks(self) -> None:
        """Remove the hooks of masks and scorer."""
        self.scorer.remove()
        self.masks.remove()

    def scores(self) -> np.ndarray:
        """The scores that rank blocks, float64 [blocks]."""
        return self.scorer.scores()

    @profiler.timed("search")
    def decide(self, scores: np.ndarray, removed: float) -> np.ndarray:
        """Blocks to keep at this removed fraction, bool [blocks]. scores: float64 [blocks]."""
        start = time.perf_counter()
        keep = search(scores, self.anatomy, self.rules, self.budget(removed))
        self.seconds["search"] += time.perf_counter() - start
        return keep

    def cut_now(self, model: nn.Module, allocate: Allocate | None = None) -> Plan:
        """The plan of a cut of all blocks at once. Collective. The engine on `model` must hold no gathered weight.

        Args:
            model: the model before the cut.
            allocate: improves the sizes of the decision. It must leave no gathered weight either.

        Raises:
            UserError: no step was finite, so that no block has a score.
        """
        self.scorer.conclude(model)
        scores = self.scores()
        if not scores.any():
            raise UserError(
                "no step before the cut had a finite loss and gradient, so that no score tells blocks apart. Give more "
                "--calibration_steps or, with fp16, a lower initial_scale_power, or look for what is not finite"
            )
        keep = self.decide(scores, self.run.pruning.sparsity)
        if allocate is not None:
            keep = allocate(scores, keep)
        self.decision, scale = self.scorer.refine(model, keep)
        self.masks.set(self.decision.astype(float))
        self.cut_done = True
        return Plan(keep=self.decision, scale=scale)

    def advance(self, step: int) -> None:
        """After update number `step`: decide again and move the masks, as the policy says.

        Raises:
            UserError: the pruning phase ends and no step was finite.
        """
        if self.pruning_finished:
            return
        gates = self.scorer.gates()
        if gates is not None:
            self.masks.set(gates)
        if self.policy.refreshes_scores(step):
            self.scorer.refresh()
        # the scores are copied from the device once: every copy waits for it
        scores = self.scores() if self.policy.decides(step) else np.zeros(0)
        action = self.policy.mask_action(step, scored=bool(scores.any()))
        if action is MaskAction.NONE:
            return
        if action is not MaskAction.MOVE:
            self.decision = self.decide(scores, 1.0 - self.policy.kept_fraction(step, self.cut_done))
        if action is MaskAction.DECIDE:
            self._warn_of_missed_budget()
            return
        self.masks.move_towards(self.decision, self.mask_step)

    def _warn_of_missed_budget(self) -> None:
        """Warn if the score says that it has missed the budget."""
        notice = self.scorer.notice(self.run.pruning.sparsity)
        if notice and collectives.is_main():
            notices.warn(notice)

    def plan(self, step: int, last_step: int, model: nn.Module) -> Plan:
        """What to do after update number `step`: blocks to cut and adapters to grow.

        Args:
            step: updates done.
            last_step: updates of the whole run.
            model: the model with its adapters.
        """
        grow = self.growth.plan(step, model)
        return Plan(keep=self._kept_by_cut(step, last_step), grow=grow)

    def _kept_by_cut(self, step: int, last_step: int) -> np.ndarray | None:
        """Blocks that remain if this step cuts, bool [blocks], else None. The end of pruning removes the masks."""
        if self.pruning_finished:
            return None
        action = self.policy.cut_action(step, last_step, self.masks.values, self.decision)
        if action is CutAction.NONE:
            return None
        if action is CutAction.FULLY_MASKED:
            removable = self.masks.fully_masked() & ~self.decision
            return cuttable(removable, self.scores(), self.anatomy, self.rules)
        if action is CutAction.UNMASKED:
            return self.decision
        # after the last step masks that are on their way jump to their ends
        self.masks.set(self.decision.astype(float))
        if action is CutAction.DECISION:
            return self.decision
        self.pruning_finished = True
        self.masks.remove()
        return None

    def agree(self, step: int, plan: Plan) -> None:
        """Stop all ranks unless they have the same plan and masks. Collective."""
        keep = plan.keep if plan.keep is not None else np.zeros(0, dtype=bool)
        collectives.agree(
            f"the plan of step {step}",
            collectives.digest(keep, plan.scale, sorted(plan.grow.items()), self.masks.values),
        )

    def compensate(self, model: nn.Module, keep: np.ndarray | None, state: zero.EngineState | None) -> None:
        """Let biases take over means that a cut at once removes, if the score says so. Collective.

        A repair fits the weights to all that is removed, and replaces this. Arguments as of `compensate`.
        """
        means = self.scorer.removed_means() if keep is not None and not self.run.pruning.repairs else {}
        if keep is not None and means:
            self.compensated = compensate(model, self.anatomy, keep, means, state)

    def follow(self, plan: Plan, anatomy: Anatomy, step: int) -> None:
        """Take over the anatomy after a cut. Hooks must be off."""
        if plan.keep is None or plan.keep.all():
            return
        self.scorer.after_cut(anatomy, plan.keep)
        self.masks.after_cut(anatomy, plan.keep)
        self.blocks.follow(plan.keep, plan.scale)
        self.decision = self.decision[plan.keep]
        self.anatomy = anatomy
        self.pruning_finished = self.policy.finished(step, self.masks.values)

    # Checkpoints

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(values, tensors) that `load_state_dict` takes. Scores for a cut at once are not part."""
        values: dict[str, Any] = {"pruning_finished": self.pruning_finished, "cut_done": self.cut_done}
        tensors = self.blocks.state_dict()
        tensors |= {"masks": torch.from_numpy(self.masks.values), "decision": torch.from_numpy(self.decision)}
        for own_values, own_tensors in (self.scorer.state_dict(), self.growth.state_dict()):
            values |= own_values
            tensors |= own_tensors
        return values | {"seconds": self.seconds, "compensated": self.compensated}, tensors

    def load_state_dict(self, anatomy: Anatomy, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take over `state_dict` of a run.

        Args:
            anatomy: the anatomy of that run after its cuts.
            values: its values.
            tensors: its tensors.
        """
        self.blocks.load_state_dict(tensors)
        self.anatomy, self.masks = anatomy, Masks(anatomy)
        self.masks.set(tensors["masks"].numpy())
        self.decision = tensors["decision"].numpy()
        self.scorer.resize(anatomy)
        self.scorer.load_state_dict(self.blocks.kept_ids, values, tensors)
        self.growth.load_state_dict(values, tensors, self.scorer.device)
        self.pruning_finished, self.cut_done = values["pruning_finished"], values["cut_done"]
        self.seconds, self.compensated = dict(values["seconds"]), list(values.get("compensated", []))
