"""What the steps of a run observe for scores and ranks (METHOD.md sections 3 and 5).

One all-reduce per step sums the observations of all ranks, so that scores do not depend on the split over micro-batches
and ranks.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from apt_ds.config.run_config import RunConfig
from apt_ds.data.batching import Batch
from apt_ds.models.blocks import Anatomy
from apt_ds.pruning.masks import Masks
from apt_ds.pruning.policies import policy_of
from apt_ds.pruning.rank_growth import RankGrowth
from apt_ds.pruning.scorer_registry import make_scorer
from apt_ds.runtime import collectives, profiler, zero


class StepObserver:
    """The scorer, the masks and the adapters' importance of a run.

    Attributes:
        policy: says which steps score blocks.
        cut_done: whether a cut of all blocks at once has happened.
        seconds: spent on scores at step boundaries and on searches since the last `take_seconds`.
    """

    def __init__(self, run: RunConfig, anatomy: Anatomy, total_steps: int, device: torch.device) -> None:
        self.run = run
        self.policy = policy_of(run.pruning, total_steps)
        self.scorer = make_scorer(run, anatomy, device)
        self.masks = Masks(anatomy)
        self.growth = RankGrowth(
            run.adapter, run.pruning.salience_decay, self.policy.phase, run.pruning.prune_every, self.policy.start
        )
        self.cut_done = False
        self.seconds = {"salience": 0.0, "search": 0.0}

    def needs_scores(self, step: int) -> bool:
        """Whether the update that follows `step` updates also scores blocks."""
        return self.scorer.uses_hooks and self.policy.scores_in(step)

    def needs_importance(self, step: int) -> bool:
        """Whether the update that follows `step` updates also compares adapters."""
        return self.growth.observes_in(step) and not self.scores_by_weight_gradients()

    def scores_by_weight_gradients(self) -> bool:
        """Whether gradients of all weights decide the next cut. All weights must then be trainable."""
        return self.run.pruning.prunes and self.scorer.uses_weight_gradients and not self.cut_done

    def score_by_weight_gradients(self, engine: zero.Engine) -> None:
        """Score by the weight gradients that an engine has after a boundary's backward. Collective."""
        self.scorer.score_weight_gradients(engine)

    def begin_step(self, step: int) -> None:
        """Before the update that follows `step` updates: set masks that collect gradients if the score needs them."""
        if not self.needs_scores(step):
            return
        target = 1.0 - self.policy.kept_fraction(step, self.cut_done)
        masks = self.scorer.begin_step(step, target, self.policy.phase)
        if masks is not None:
            self.masks.learn(masks)

    def begin(self, batch: Batch, dtype: torch.dtype, example_offset: int, decoder_mask: Tensor | None = None) -> None:
        """Announce a forward pass that counts for the scores.

        Args:
            batch: the micro-batch. Pass CPU tensors: reading a GPU tensor here would synchronise with the device.
            dtype: the dtype of activations.
            example_offset: position of its first example in the global batch.
            decoder_mask: which tokens of a decoder count, [batch, length].
        """
        self.scorer.begin(batch.attention_mask, dtype, example_offset, decoder_mask, batch.position_ids)

    def end(self) -> None:
        """End the micro-batch after its backward pass."""
        self.scorer.end()

    @profiler.timed("salience")
    @torch.no_grad()
    def observations(self, engine: zero.Engine, scoring: bool, importance: bool) -> tuple[Tensor, Tensor]:
        """This rank's parts of what a step observes. One all-reduce sums them over ranks.

        Args:
            engine: has the gradients of the step.
            scoring: whether the step scores blocks.
            importance: whether the step compares adapters.

        Returns:
            The scorer's sums over blocks, fp32 in the scorer's own shape, and the importance of each adapter, fp32
            [adapters]. Empty where the step does not observe them.
        """
        nothing = torch.zeros(0, device=self.scorer.device)
        if scoring:
            self.scorer.take_mask_gradients(self.masks)
        block_sums = self.scorer.abs_sums if scoring else nothing
        return block_sums, self.growth.observe(engine) if importance else nothing

    @profiler.timed("salience")
    def observe(self, engine: zero.Engine, block_sums: Tensor, importances: Tensor) -> None:
        """Take the `observations` of a step with a finite loss, summed over ranks, into the averages. Collective."""
        start = time.perf_counter()
        if block_sums.numel():
            self.scorer.abs_sums.copy_(block_sums)
            if self.scorer.stale:
                zero.release_gathered(engine)
                self.scorer.measure_outliers(engine.module)
            self.scorer.update(1.0 / (zero.loss_scale(engine) * collectives.world_size()))
        if importances.numel():
            self.growth.update(importances)
        self.seconds["salience"] += time.perf_counter() - start

    def discard(self) -> None:
        """Forget the observations of a step with a non-finite loss."""
        self.scorer.discard()

    def take_seconds(self) -> dict[str, float]:
        """Seconds spent on scores at step boundaries and on searches since the last call."""
        seconds, self.seconds = self.seconds, dict.fromkeys(self.seconds, 0.0)
        return seconds
