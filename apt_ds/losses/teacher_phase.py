"""The phase of self-distillation: when the teacher learns, and how much it counts (METHOD.md section 7).

The teacher is the student itself with earlier values of its trained weights and without masks. mu rises from 0 to 1
over the pruning phase. At each adjustment the teacher takes the student's values, unless the student got worse.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from apt_ds.config import schedules
from apt_ds.config.run_config import RunConfig
from apt_ds.losses.self_teacher import TRANSFORM, Teacher, attach, detach, indexed_transform
from apt_ds.models.blocks import Anatomy
from apt_ds.runtime import zero


class TeacherPhase:
    """The teacher of a run from its first snapshot to its end. Its state is the same on all ranks.

    Attributes:
        active: Whether there is a teacher now.
        distill_steps: The step that ends the teacher's phase, 0 without distillation.
        distill_start: Optimizer steps before that phase.
        waiting: Whether this step comes before that phase.
        mu: The share of L_distill in this step.
        teacher: The earlier values of the student.
        best_score: The student's score at the teacher's last snapshot.
    """

    def __init__(self, run: RunConfig, pruning_steps: int, device: torch.device, pruning_start: int = 0) -> None:
        self.run, self.device = run, device
        self.active = run.pruning.self_distills
        self.distill_steps = pruning_steps if self.active else 0
        self.distill_start, self.waiting = pruning_start, False
        self.teacher = Teacher(run.optim.trainable == "all")
        self.best_score = -math.inf
        self.mu = 0.0

    def prepare(self, model: nn.Module, anatomy: Anatomy) -> Anatomy:
        """Put Tr on a model if there is a teacher. Returns the anatomy with Tr."""
        if not self.active:
            return anatomy
        attach(model, anatomy.sizes.hidden, self.run.optim.seed)
        return replace(anatomy, slots=(*anatomy.slots, indexed_transform()))

    def end(self, model: nn.Module, anatomy: Anatomy) -> Anatomy:
        """End the phase: remove teacher and Tr. No engine may be on the model. Returns the anatomy without Tr."""
        detach(model)
        self.active, self.teacher = False, Teacher()
        return replace(anatomy, slots=tuple(s for s in anatomy.slots if s.path != TRANSFORM))

    def begin(self, step: int) -> None:
        """Start optimizer step `step`, from 0."""
        self.waiting = self.active and step < self.distill_start
        done, phase = step - self.distill_start, self.distill_steps - self.distill_start
        self.mu = schedules.distill_weight(done, phase) if self.active else 0.0

    def due(self, step: int) -> bool:
        """Whether the phase ends after `step` updates."""
        return self.active and step >= self.distill_steps

    def take_first_snapshot(self, model: nn.Module) -> None:
        """Take a snapshot of the student if the teacher has none. Collective."""
        if self.active and not self.teacher.snapshot:
            self.teacher.take_snapshot(model)

    def teacher_due(self, step: int) -> bool:
        """Whether the teacher may take a new snapshot after `step` updates: as its phase begins, and at adjustments."""
        if not self.active:
            return False
        begins = step == self.distill_start > 0
        every = self.run.pruning.prune_every
        return begins or schedules.is_adjustment(step, every, self.distill_steps, self.distill_start)

    def set_initial_score(self, metrics: dict[str, Any]) -> None:
        """Take the student's score at the start of the run, to which the first snapshot belongs.

        Args:
            metrics: `score`, or else `held_out_loss`.
        """
        score = metrics.get("score", -metrics["held_out_loss"])
        self.best_score = -math.inf if math.isnan(score) else score

    def update_teacher(self, score: float, model: nn.Module) -> bool:
        """Take a new snapshot unless the student's score got worse. NaN counts as worse. Collective.

        Args:
            score: The student's score at this adjustment. Higher is better.
            model: The student.

        Returns:
            Whether there is a new snapshot.
        """
        if not self.active or not score >= self.best_score:
            return False
        self.best_score = score
        self.teacher.take_snapshot(model)
        return True

    @contextmanager
    def teacher_follows_surgery(self, state: zero.EngineState) -> Iterator[None]:
        """Inside the context every change of shapes applies to the teacher's snapshot as to the moments in `state`."""
        for name, value in self.teacher.snapshot.items():
            state.tensors[name]["past"] = value
        yield
        remaining = [name for name in self.teacher.snapshot if name in state.tensors]
        self.teacher.snapshot = {name: state.tensors[name].pop("past") for name in remaining}

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The state as (JSON values, tensors by parameter name), for `load_state_dict`."""
        best = None if self.best_score == -math.inf else self.best_score
        return {"best": best, "over": not self.active}, dict(self.teacher.snapshot)

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned. The snapshot keeps its dtype."""
        self.best_score = -math.inf if values["best"] is None else values["best"]
        self.active = not values["over"]
        # fresh allocations, aligned as before the restart: kernels round differently on other alignments
        self.teacher.snapshot = {name: tensor.to(self.device).clone() for name, tensor in tensors.items()}
