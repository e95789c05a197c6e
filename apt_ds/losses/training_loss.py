"""The loss of training: the task's loss, and self-distillation during gradual pruning (METHOD.md section 7).

    L = mu L_distill + (1 - mu) L_task

mu rises from 0 to 1 over the pruning phase. Before and after that phase the task's loss is alone. Every term is a sum
over a micro-batch, divided by a count of the whole global batch. So no split of that batch changes the loss.

`--layer_match step` needs all distances of the global batch before the first layer loss. The first micro-batch gives
its distances in its ordinary forward pass. The other micro-batches get a pass without gradients beforehand
(`preview`). One all-reduce then sums the distances over ranks. See `layer_matching.py`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from apt_ds.config import schedules
from apt_ds.config.run_config import RunConfig
from apt_ds.data.batching import Batch
from apt_ds.data.tokenized import IGNORED, Row
from apt_ds.losses import distillation
from apt_ds.losses.dense_teacher import DenseTeacher, has_teacher
from apt_ds.losses.layer_matching import LayerMatcher
from apt_ds.losses.router_loss import RouterLoss
from apt_ds.losses.self_teacher import (
    TRANSFORM,
    ForwardOutputs,
    LayerRecorder,
    Teacher,
    attach,
    detach,
    indexed_transform,
)
from apt_ds.losses.task_losses import TASK_LOSSES, TaskLoss
from apt_ds.models.blocks import HIDDEN, Anatomy
from apt_ds.pruning.masks import Masks
from apt_ds.runtime import collectives, notices, zero
from apt_ds.runtime.profiler import timed
from apt_ds.runtime.replay import RandomState, random_state, replayed

OWN_LOGITS_NOTICE = (
    "The loss uses the model's own logits, because they are not the output of the LM head as its spec describes it. "
    "Training is correct and needs more memory."
)


class TrainingLoss:
    """The loss of every micro-batch, and the teacher with it. Its state is the same on all ranks.

    Attributes:
        task_loss: The loss of the run's task type.
        distilling: Whether there is a teacher now.
        distill_steps: The step that ends the teacher's phase, 0 without distillation.
        distill_start: Optimizer steps before that phase.
        waiting: Whether this step comes before that phase.
        teacher: The earlier values of the student.
        recorder: Hooks that record the outputs of layers.
        matcher: The layer mapping.
        dense_teacher: The loss of batches that know what the dense model says of their tokens.
        routers: The auxiliary loss of routers, if the model's configuration asks for it.
        best_score: The student's score at the teacher's last snapshot.
        mu: The share of L_distill in this step.
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
        self.distilling = run.pruning.self_distills
        self.distill_steps = pruning_steps if self.distilling else 0
        self.dense_teacher = DenseTeacher(run.pruning.distill_weight, run.pruning.distill_temperature)
        self.distill_start, self.waiting = pruning_start, False
        self.teacher, self.recorder = Teacher(run.optim.trainable == "all"), LayerRecorder(anatomy)
        self.matcher = LayerMatcher(anatomy, run.optim.seed, run.pruning.layer_match == "step", device)
        self.routers = RouterLoss(anatomy)
        self.best_score = -math.inf
        self.mu = 0.0
        self.loss_denominator = 0
        self.tokens_per_stack: list[int] = []
        self._previewed: deque[tuple[ForwardOutputs, RandomState]] = deque()

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

    # The phase of distillation

    def prepare(self, model: nn.Module, anatomy: Anatomy) -> Anatomy:
        """Put Tr on a model if there is a teacher. Returns the anatomy with Tr."""
        if not self.distilling:
            return anatomy
        attach(model, anatomy.sizes.hidden, self.run.optim.seed)
        return replace(anatomy, slots=(*anatomy.slots, indexed_transform()))

    def end(self, model: nn.Module, anatomy: Anatomy) -> Anatomy:
        """End the phase: remove teacher and Tr. No engine may be on the model. Returns the anatomy without Tr."""
        detach(model)
        self.distilling, self.teacher = False, Teacher()
        return replace(anatomy, slots=tuple(s for s in anatomy.slots if s.path != TRANSFORM))

    def teacher_due(self, step: int) -> bool:
        """Whether the teacher may take a new snapshot after `step` updates: as its phase begins, and at adjustments."""
        if not self.distilling:
            return False
        begins = step == self.distill_start > 0
        every = self.run.pruning.prune_every
        return begins or schedules.is_adjustment(step, every, self.distill_steps, self.distill_start)

    def due(self, step: int) -> bool:
        """Whether the phase ends after `step` updates."""
        return self.distilling and step >= self.distill_steps

    def install_hooks(self, model: nn.Module) -> None:
        """Register the hooks, and take the first snapshot if the teacher has none. Collective."""
        self.routers.install(model)
        if not self.distilling:
            return
        self.recorder.install(model)
        if not self.teacher.snapshot:
            self.teacher.take_snapshot(model)

    def remove_hooks(self) -> None:
        """Remove the hooks."""
        self.routers.remove()
        self.recorder.remove()

    @contextmanager
    def teacher_follows_surgery(self, state: zero.EngineState) -> Iterator[None]:
        """Inside the context every change of shapes applies to the teacher's snapshot as to the moments in `state`."""
        for name, value in self.teacher.snapshot.items():
            state.tensors[name]["past"] = value
        yield
        remaining = [name for name in self.teacher.snapshot if name in state.tensors]
        self.teacher.snapshot = {name: state.tensors[name].pop("past") for name in remaining}

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
        if not self.distilling or not score >= self.best_score:
            return False
        self.best_score = score
        self.teacher.take_snapshot(model)
        return True

    # One optimizer step

    def begin(self, step: int, rows: list[Row]) -> None:
        """Start an optimizer step. Call it before the step's micro-batches.

        Args:
            step: Optimizer step, from 0.
            rows: All examples of the global batch.
        """
        self.waiting = self.distilling and step < self.distill_start
        done, phase = step - self.distill_start, self.distill_steps - self.distill_start
        self.mu = schedules.distill_weight(done, phase) if self.distilling else 0.0
        self.matcher.begin(step, measuring=self.distilling and not self.waiting)
        self._previewed.clear()
        self.dense_teacher.begin()
        self.loss_denominator = sum(self.task_loss.loss_denominator(row) for row in rows)
        self.tokens_per_stack = [sum(len(row["input_ids"]) for row in rows)]
        if len(self.matcher.stacks) > 1:
            self.tokens_per_stack.append(sum(label != IGNORED for row in rows for label in row["labels"]))

    @property
    def previews(self) -> bool:
        """Whether `preview` must see all micro-batches of a step but the first."""
        return self.matcher.same_step and self.distilling and not self.waiting

    @timed("forward")
    def preview(self, engine: nn.Module, batches: Iterable[Batch], masks: Masks) -> None:
        """Measure distances on all micro-batches of the step but the first, without gradients. Collective.

        `micro_batch_loss` reuses the teacher's outputs when it gets the same batches in the same order. It also
        replays the random state, so that the student drops the same units in both passes.

        Args:
            engine: The engine, or a plain model.
            batches: Those micro-batches.
            masks: The student's masks.
        """
        for batch in batches:
            teacher = self.teacher_outputs(engine, batch, masks)
            random = random_state(self.device)
            with torch.no_grad():
                student = self.student_outputs(engine, batch)
            self._measure(zero.unwrap(engine), batch, masks, student, teacher)
            self._previewed.append((teacher, random))

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
        if not self.distilling:
            loss = self.task_loss.summed_loss(engine, batch)
            return loss / self.loss_denominator, loss.detach()
        if self.waiting:
            loss = self.task_loss.summed_loss(engine, batch)
            return loss / self.loss_denominator + self._zero(zero.unwrap(engine)), loss.detach()
        if self.matcher.same_step and self.matcher.matched:
            teacher, random = self._previewed.popleft()
            with replayed(random, self.device):
                student = self.student_outputs(engine, batch)
        else:
            teacher = self.teacher_outputs(engine, batch, masks)
            student = self.student_outputs(engine, batch)
            self._measure(zero.unwrap(engine), batch, masks, student, teacher)
            if self.matcher.same_step:
                self.matcher.rematch()
        loss = self.task_loss.loss(student.logits, batch)
        distill_loss = self._distill(zero.unwrap(engine), batch, masks, student, teacher)
        return (1 - self.mu) * loss / self.loss_denominator + self.mu * distill_loss, loss.detach()

    def _zero(self, model: nn.Module) -> Tensor:
        """0 that depends on Tr. An engine expects a gradient of every weight that it trains."""
        transform = model.get_submodule(TRANSFORM)
        weight = next(transform.parameters())
        width = zero.full_shape(weight)[-1]
        return 0.0 * transform(torch.zeros(1, 1, width, device=self.device, dtype=weight.dtype)).float().sum()

    def teacher_outputs(self, engine: nn.Module, batch: Batch, masks: Masks) -> ForwardOutputs:
        """The teacher's logits and the states that this step needs, without gradients."""
        layers = {*self.matcher.teacher_layers, *self.matcher.measured_layers}
        with self.teacher.as_teacher(engine, masks), self.recorder.recording(layers) as states:
            logits = self.task_loss.logits(engine, batch)
        return ForwardOutputs(logits, states)

    def student_outputs(self, engine: nn.Module, batch: Batch) -> ForwardOutputs:
        """The student's logits and the states of all its layers."""
        with self.recorder.recording(self.matcher.mapping) as states:
            logits = self.task_loss.logits(engine, batch)
        return ForwardOutputs(logits, states)

    def _distill(
        self, model: nn.Module, batch: Batch, masks: Masks, student: ForwardOutputs, teacher: ForwardOutputs
    ) -> Tensor:
        """L_distill of a micro-batch, its part of the mean over the global batch: an fp32 scalar."""
        transform, token_masks = model.get_submodule(TRANSFORM), self._token_masks(batch)
        hidden_mask = _hidden_mask(masks, student)
        prediction = distillation.prediction_distance(student.logits, teacher.logits)
        total = distillation.prediction_coefficient(self.run.data.task) * prediction / self.loss_denominator
        for layer in self.matcher.teacher_layers:
            stack = self.matcher.stack_of[layer]
            transformed = transform(student.states[self.matcher.mapping[layer]])
            distance = distillation.layer_distance(transformed, teacher.states[layer], token_masks[stack], hidden_mask)
            total = total + distillation.LAYER_COEFFICIENT * distance / self.tokens_per_stack[stack]
        return total

    def _measure(
        self, model: nn.Module, batch: Batch, masks: Masks, student: ForwardOutputs, teacher: ForwardOutputs
    ) -> None:
        """Give a micro-batch's states to the matcher."""
        transform, token_masks = model.get_submodule(TRANSFORM), self._token_masks(batch)
        self.matcher.measure(transform, student.states, teacher.states, token_masks, _hidden_mask(masks, student))

    def _token_masks(self, batch: Batch) -> list[Tensor]:
        """The tokens that count in each stack, [B, L] for the first and [B, T] for a decoder."""
        decoder_mask = self.task_loss.decoder_mask(batch)
        return [batch.attention_mask] if decoder_mask is None else [batch.attention_mask, decoder_mask]

    def pending(self) -> Tensor:
        """Distances that the caller sums over ranks at the end of a step, see `LayerMatcher.pending`."""
        distance = self.dense_teacher.pending()
        return self.matcher.pending() if distance is None else distance

    def observe(self, summed: Tensor) -> None:
        """Take `pending`, summed over ranks, of a step with a finite loss. Pass a CPU tensor: its values are read."""
        self.dense_teacher.observe(summed, self.loss_denominator)
        if self.distilling:
            self.matcher.observe(summed)

    # State

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The state as (JSON values, tensors by parameter name), for `load_state_dict`."""
        best = None if self.best_score == -math.inf else self.best_score
        values = {"match": list(self.matcher.mapping.items()), "best": best, "over": not self.distilling}
        values["distance"] = self.dense_teacher.distance
        return values, dict(self.teacher.snapshot)

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned. The snapshot keeps its dtype."""
        self.matcher.mapping = {int(layer): int(student) for layer, student in values["match"]}
        self.best_score = -math.inf if values["best"] is None else values["best"]
        self.distilling = not values["over"]
        # absent from checkpoints of earlier versions
        self.dense_teacher.distance = values.get("distance")
        # fresh allocations, aligned as before the restart: kernels round differently on other alignments
        self.teacher.snapshot = {name: tensor.to(self.device).clone() for name, tensor in tensors.items()}


@torch.no_grad()
def _hidden_mask(masks: Masks, student: ForwardOutputs) -> Tensor | None:
    """The hidden dimensions that distances count, see `distillation.compared_dimensions`."""
    return distillation.compared_dimensions(masks.mask_for(HIDDEN, student.states[0]))
