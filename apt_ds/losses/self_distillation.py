"""L_distill of a micro-batch: the outputs of student and teacher, and their distances (METHOD.md section 7).

`--layer_match step` needs all distances of the global batch before the first layer loss. The first micro-batch gives
its distances in its ordinary forward pass. The other micro-batches get a pass without gradients beforehand
(`preview`). One all-reduce then sums the distances over ranks. See `layer_matching.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from apt_ds.config.run_config import RunConfig
from apt_ds.data.batching import Batch
from apt_ds.losses import distillation
from apt_ds.losses.layer_matching import LayerMatcher
from apt_ds.losses.self_teacher import TRANSFORM, ForwardOutputs, LayerRecorder
from apt_ds.losses.task_loss import TaskLoss
from apt_ds.losses.teacher_phase import TeacherPhase
from apt_ds.models.blocks import HIDDEN, Anatomy
from apt_ds.pruning.masks import Masks
from apt_ds.runtime import zero
from apt_ds.runtime.profiler import timed
from apt_ds.runtime.replay import RandomState, random_state, replayed


class SelfDistillation:
    """The loss that the teacher of a phase adds.

    Attributes:
        phase: The phase of the teacher.
        task_loss: The loss of the run's task type, which gives the logits.
        recorder: Hooks that record the outputs of layers.
        matcher: The layer mapping.
    """

    def __init__(
        self, run: RunConfig, phase: TeacherPhase, task_loss: TaskLoss, anatomy: Anatomy, device: torch.device
    ) -> None:
        self.run, self.phase, self.task_loss, self.device = run, phase, task_loss, device
        self.recorder = LayerRecorder(anatomy)
        self.matcher = LayerMatcher(anatomy, run.optim.seed, run.pruning.layer_match == "step", device)
        self._previewed: deque[tuple[ForwardOutputs, RandomState]] = deque()

    def install_hooks(self, model: nn.Module) -> None:
        """Register the hooks if there is a teacher."""
        if self.phase.active:
            self.recorder.install(model)

    def remove_hooks(self) -> None:
        """Remove the hooks."""
        self.recorder.remove()

    def begin(self, step: int) -> None:
        """Start optimizer step `step`, from 0. Call it after `TeacherPhase.begin`."""
        self.matcher.begin(step, measuring=self.phase.active and not self.phase.waiting)
        self._previewed.clear()

    @property
    def previews(self) -> bool:
        """Whether `preview` must see all micro-batches of a step but the first."""
        return self.matcher.same_step and self.phase.active and not self.phase.waiting

    @timed("forward")
    def preview(self, engine: nn.Module, batches: Iterable[Batch], masks: Masks) -> None:
        """Measure distances on all micro-batches of the step but the first, without gradients. Collective.

        `outputs` reuses the teacher's outputs when it gets the same batches in the same order. It also replays the
        random state, so that the student drops the same units in both passes.

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

    def outputs(self, engine: nn.Module, batch: Batch, masks: Masks) -> tuple[ForwardOutputs, ForwardOutputs]:
        """The outputs of student and teacher for a micro-batch. Their distances are measured once. Collective."""
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
        return student, teacher

    def teacher_outputs(self, engine: nn.Module, batch: Batch, masks: Masks) -> ForwardOutputs:
        """The teacher's logits and the states that this step needs, without gradients."""
        layers = {*self.matcher.teacher_layers, *self.matcher.measured_layers}
        with self.phase.teacher.as_teacher(engine, masks), self.recorder.recording(layers) as states:
            logits = self.task_loss.logits(engine, batch)
        return ForwardOutputs(logits, states)

    def student_outputs(self, engine: nn.Module, batch: Batch) -> ForwardOutputs:
        """The student's logits and the states of all its layers."""
        with self.recorder.recording(self.matcher.mapping) as states:
            logits = self.task_loss.logits(engine, batch)
        return ForwardOutputs(logits, states)

    def zero_loss(self, model: nn.Module) -> Tensor:
        """0 that depends on Tr. An engine expects a gradient of every weight that it trains."""
        transform = model.get_submodule(TRANSFORM)
        weight = next(transform.parameters())
        width = zero.full_shape(weight)[-1]
        return 0.0 * transform(torch.zeros(1, 1, width, device=self.device, dtype=weight.dtype)).float().sum()

    def loss(
        self,
        model: nn.Module,
        batch: Batch,
        masks: Masks,
        outputs: tuple[ForwardOutputs, ForwardOutputs],
        loss_denominator: int,
        tokens_per_stack: list[int],
    ) -> Tensor:
        """L_distill of a micro-batch, its part of the mean over the global batch: an fp32 scalar.

        Args:
            model: The model with Tr.
            batch: The micro-batch.
            masks: The student's masks.
            outputs: Those of student and teacher.
            loss_denominator: Predictions of the global batch.
            tokens_per_stack: Tokens of the global batch that count in each stack.
        """
        student, teacher = outputs
        transform, token_masks = model.get_submodule(TRANSFORM), self._token_masks(batch)
        hidden_mask = _hidden_mask(masks, student)
        prediction = distillation.prediction_distance(student.logits, teacher.logits)
        total = distillation.prediction_coefficient(self.run.data.task) * prediction / loss_denominator
        for layer in self.matcher.teacher_layers:
            stack = self.matcher.stack_of[layer]
            transformed = transform(student.states[self.matcher.mapping[layer]])
            distance = distillation.layer_distance(transformed, teacher.states[layer], token_masks[stack], hidden_mask)
            total = total + distillation.LAYER_COEFFICIENT * distance / tokens_per_stack[stack]
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


@torch.no_grad()
def _hidden_mask(masks: Masks, student: ForwardOutputs) -> Tensor | None:
    """The hidden dimensions that distances count, see `distillation.compared_dimensions`."""
    return distillation.compared_dimensions(masks.mask_for(HIDDEN, student.states[0]))
