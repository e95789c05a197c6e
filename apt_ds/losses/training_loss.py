"""The loss of training: the task's loss, and self-distillation during gradual pruning (METHOD.md section 7).

    L = mu L_distill + (1 - mu) L_task

mu rises from 0 to 1 over the pruning phase (`teacher_phase.py`). Before and after that phase the task's loss is alone.
`self_distillation.py` gives L_distill. Every term is a sum over a micro-batch, divided by a count of the whole global
batch. So no split of that batch changes the loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from apt_ds.config.run_config import RunConfig
from apt_ds.data.batching import Batch
from apt_ds.data.tokenized import IGNORED, Row
from apt_ds.losses.dense_teacher import DenseTeacher, has_teacher
from apt_ds.losses.router_loss import RouterLoss
from apt_ds.losses.self_distillation import SelfDistillation
from apt_ds.losses.task_loss import TaskLoss
from apt_ds.losses.task_losses import TASK_LOSSES
from apt_ds.losses.teacher_phase import TeacherPhase
from apt_ds.models.blocks import Anatomy
from apt_ds.pruning.masks import Masks
from apt_ds.runtime import collectives, notices, zero
from apt_ds.runtime.profiler import timed

OWN_LOGITS_NOTICE = (
    "The loss uses the model's own logits, because they are not the output of the LM head as its spec describes it. "
    "Training is correct and needs more memory."
)


class TrainingLoss:
    """The loss of every micro-batch. Its state is the same on all ranks.

    Attributes:
        task_loss: The loss of the run's task type.
        phase: The phase of self-distillation, with its teacher.
        distillation: The loss that this teacher adds.
        dense_teacher: The loss of batches that know what the dense model says of their tokens.
        routers: The auxiliary loss of routers, if the model's configuration asks for it.
        loss_denominator: Predictions of this step's global batch.
        tokens_per_stack: Tokens of this step's global batch that count in each stack.
    """

    def __init__(
        self,
        run: RunConfig,
        task_type: str,
        anatomy: Anatomy,
        pruning_steps: int,
        device: torch.device,
        pruning_start: int = 0,
    ) -> None:
        self.run, self.task_type, self.device = run, task_type, device
        self.task_loss: TaskLoss = TASK_LOSSES[task_type]
        self.phase = TeacherPhase(run, pruning_steps, device, pruning_start)
        self.distillation = SelfDistillation(run, self.phase, self.task_loss, anatomy, device)
        self.dense_teacher = DenseTeacher(run.pruning.distill_weight, run.pruning.distill_temperature)
        self.routers = RouterLoss(anatomy)
        self.loss_denominator = 0
        self.tokens_per_stack: list[int] = []

    def check(self, engine: nn.Module) -> None:
        """Find out once whether the loss can be computed at the LM head, and print if not. Collective."""
        training = engine.training
        engine.eval()
        try:
            at_head = self.task_loss.check(engine, self.device)
        finally:
            engine.train(training)
        if not at_head and collectives.is_main():
            notices.warn(OWN_LOGITS_NOTICE)

    def install_hooks(self, model: nn.Module) -> None:
        """Register the hooks, and take the teacher's first snapshot if it has none. Collective."""
        self.routers.install(model)
        self.distillation.install_hooks(model)
        self.phase.take_first_snapshot(model)

    def remove_hooks(self) -> None:
        """Remove the hooks."""
        self.routers.remove()
        self.distillation.remove_hooks()

    def begin(self, step: int, rows: list[Row]) -> None:
        """Start an optimizer step. Call it before the step's micro-batches.

        Args:
            step: Optimizer step, from 0.
            rows: All examples of the global batch.
        """
        self.phase.begin(step)
        self.distillation.begin(step)
        self.dense_teacher.begin()
        self.loss_denominator = sum(self.task_loss.loss_denominator(row) for row in rows)
        self.tokens_per_stack = [sum(len(row["input_ids"]) for row in rows)]
        if len(self.distillation.matcher.stacks) > 1:
            self.tokens_per_stack.append(sum(label != IGNORED for row in rows for label in row["labels"]))

    @timed("forward")
    def micro_batch_loss(self, engine: nn.Module, batch: Batch, masks: Masks) -> tuple[Tensor, Tensor]:
        """The loss of a micro-batch. Collective.

        Args:
            engine: The engine, or a plain model.
            batch: The micro-batch of this rank.
            masks: The student's masks.

        Returns:
            The loss to differentiate, this micro-batch's part of the mean over the global batch. And the task's loss,
            summed and detached. Both are fp32 scalars.
        """
        if not self.routers.coefficient:
            return self._micro_batch_loss(engine, batch, masks)
        with self.routers.recording() as routes:
            loss, task_loss = self._micro_batch_loss(engine, batch, masks)
        return loss + self.routers.loss(routes, batch.attention_mask, self.tokens_per_stack[0]), task_loss

    def _micro_batch_loss(self, engine: nn.Module, batch: Batch, masks: Masks) -> tuple[Tensor, Tensor]:
        """As `micro_batch_loss`, without the routers' loss."""
        if has_teacher(batch):
            mixed = self.dense_teacher.loss(self.task_loss, engine, batch)
            return mixed.loss / self.loss_denominator, mixed.cross_entropy
        if not self.phase.active:
            loss = self.task_loss.summed_loss(engine, batch)
            return loss / self.loss_denominator, loss.detach()
        if self.phase.waiting:
            loss = self.task_loss.summed_loss(engine, batch)
            zero_loss = self.distillation.zero_loss(zero.unwrap(engine))
            return loss / self.loss_denominator + zero_loss, loss.detach()
        outputs, mu = self.distillation.outputs(engine, batch, masks), self.phase.mu
        loss = self.task_loss.loss(outputs[0].logits, batch)
        distill_loss = self.distillation.loss(
            zero.unwrap(engine), batch, masks, outputs, self.loss_denominator, self.tokens_per_stack
        )
        return (1 - mu) * loss / self.loss_denominator + mu * distill_loss, loss.detach()

    def pending(self) -> Tensor:
        """Distances that the caller sums over ranks at the end of a step, see `LayerMatcher.pending`."""
        distance = self.dense_teacher.pending()
        return self.distillation.matcher.pending() if distance is None else distance

    def observe(self, summed: Tensor) -> None:
        """Take `pending`, summed over ranks, of a step with a finite loss. Pass a CPU tensor: its values are read."""
        self.dense_teacher.observe(summed, self.loss_denominator)
        if self.phase.active:
            self.distillation.matcher.observe(summed)

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The state as (JSON values, tensors by parameter name), for `load_state_dict`."""
        phase, tensors = self.phase.state_dict()
        match = list(self.distillation.matcher.mapping.items())
        return {"match": match, **phase, "distance": self.dense_teacher.distance}, tensors

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.distillation.matcher.mapping = {int(layer): int(student) for layer, student in values["match"]}
        # absent from checkpoints of earlier versions
        self.dense_teacher.distance = values.get("distance")
        self.phase.load_state_dict(values, tensors)
