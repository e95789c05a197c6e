"""What a run learns from: its task, and while it prunes a teacher within (section 7).

L = mu L_distill + (1 - mu) L_task, mu from 0 to 1 over the pruning phase; after it the task alone. Every term is a sum
over a micro-batch divided by what the global batch weighs, so that no split changes it.

A teacher layer is compared with the nearest student layer. `--layer_match step` measures distances on the states of the
same step, over the whole global batch, before the first layer loss. The first micro-batch gives them in its ordinary
forward pass. The other micro-batches get a pass without gradients beforehand (`preview`). One all-reduce then sums the
distances over ranks. `--layer_match previous` uses the distances of the step before, which every pass measures.
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
from apt_ds.losses.self_teacher import TRANSFORM, Outputs, Teacher, Watcher, attach, detach, slot
from apt_ds.losses.task_losses import OBJECTIVES
from apt_ds.models.blocks import HIDDEN, Anatomy
from apt_ds.pruning.masks import Masks
from apt_ds.runtime import collectives, zero
from apt_ds.runtime.profiler import timed
from apt_ds.runtime.replay import RandomState, random_state, replayed


class TrainingLoss:
    """Everything on it is the same on all ranks.

    phase: steps the teacher lives for, 0 without one; match: teacher's layer to the student's it is compared with;
    best: the student's score when the teacher last learnt from it; same_step: whether `match` comes from the states of
    the same step; layers: the teacher's layers of this step; measured: those that distances are taken to in this step.
    """

    def __init__(self, run: RunConfig, kind: str, anatomy: Anatomy, phase: int, device: torch.device) -> None:
        self.run, self.kind, self.device = run, kind, device
        self.objective = OBJECTIVES[kind]
        self.phase = phase if run.pruning.distill else 0
        self.teacher, self.watcher = Teacher(), Watcher(anatomy)
        second = anatomy.second
        stacks: list[list[int]] = [[], []]
        for number, path in enumerate(anatomy.layers):
            stacks[bool(second) and path.startswith(second)].append(number)
        self.stacks = [stack for stack in stacks if stack]
        self.match = {layer: layer for stack in self.stacks for layer in stack}
        self.place = {layer: number for number, stack in enumerate(self.stacks) for layer in stack}
        self.best = -float("inf")
        self.over = not run.pruning.distill
        self.same_step = run.pruning.layer_match == "step"
        self._begin(0)

    def prepare(self, model: nn.Module, anatomy: Anatomy) -> Anatomy:
        """Put Tr on a model; returns the anatomy with it."""
        if self.over:
            return anatomy
        attach(model, anatomy.sizes.hidden, self.run.optim.seed)
        return replace(anatomy, slots=(*anatomy.slots, slot()))

    def end(self, model: nn.Module, anatomy: Anatomy) -> Anatomy:
        """Let go of teacher and Tr, once the phase is over and no engine is on the model."""
        detach(model)
        self.over, self.teacher = True, Teacher()
        return replace(anatomy, slots=tuple(s for s in anatomy.slots if s.path != TRANSFORM))

    def due(self, step: int) -> bool:
        """Whether the phase ends after `step` updates."""
        return not self.over and step >= self.phase

    def install_hooks(self, model: nn.Module) -> None:
        """Hooks on; the teacher starts as the student is, if it knows nothing yet. Collective."""
        if self.over:
            return
        self.watcher.install(model)
        if not self.teacher.snapshot:
            self.teacher.learn(model)

    def remove_hooks(self) -> None:
        """Hooks off."""
        self.watcher.remove()

    @contextmanager
    def teacher_follows_surgery(self, state: zero.EngineState) -> Iterator[None]:
        """The teacher's values follow every change of shapes inside, as the moments in `state` do."""
        for name, value in self.teacher.snapshot.items():
            state.tensors[name]["past"] = value
        yield
        self.teacher.snapshot = {name: state.tensors[name].pop("past") for name in self.teacher.snapshot}

    def start(self, judged: dict[str, Any]) -> None:
        """Take the score of the student as the run begins, which is what the teacher has learnt from so far."""
        score = judged.get("score", -judged["held_out_loss"])
        self.best = -float("inf") if math.isnan(score) else score

    def follow(self, score: float, model: nn.Module) -> bool:
        """At an adjustment: the teacher learns from a student that has not got worse. Collective.

        A score that is not a number counts as worse.
        """
        if self.over or not score >= self.best:
            return False
        self.best = score
        self.teacher.learn(model)
        return True

    def begin(self, step: int, rows: list[Row]) -> None:
        """Before the micro-batches of an optimizer step on the examples `rows` of the global batch."""
        self._begin(step)
        self.weight = sum(self.objective.weight(row) for row in rows)
        self.tokens = [sum(len(row["input_ids"]) for row in rows)]
        if len(self.stacks) > 1:
            self.tokens.append(sum(label != IGNORED for row in rows for label in row["labels"]))

    def _begin(self, step: int) -> None:
        self.mu = 0.0 if self.over else schedules.distill_weight(step, self.phase)
        self.layers = distillation.drawn(self.stacks, step, self.run.optim.seed)
        self.measured = (
            self.layers if self.same_step else distillation.drawn(self.stacks, step + 1, self.run.optim.seed)
        )
        count = 0 if self.over else len(self.measured) * sum(map(len, self.stacks))
        self.distances = torch.zeros(count, device=self.device)
        self.matched = False
        self.previewed: deque[tuple[Outputs, RandomState]] = deque()

    @property
    def previews(self) -> bool:
        """Whether all micro-batches of a step but the first must be shown to `preview` beforehand."""
        return self.same_step and not self.over

    @timed("forward")
    def preview(self, engine: nn.Module, batches: Iterable[Batch], masks: Masks) -> None:
        """Measure distances on `batches`, all micro-batches of the step but the first, without gradients. Collective.

        The teacher's outputs are kept until `micro` takes the same batches in the same order. So is the state of the
        random generators: the student drops the same units in both passes.
        """
        for batch in batches:
            taught = self.teach(engine, batch, masks)
            random = random_state(self.device)
            with torch.no_grad():
                own = self._learn(engine, batch)
            self._measure(engine, batch, masks, own, taught)
            self.previewed.append((taught, random))

    @timed("forward")
    def micro_batch_loss(self, engine: nn.Module, batch: Batch, masks: Masks) -> tuple[Tensor, Tensor]:
        """(what to go backward from, the task's loss summed) of a micro-batch. Collective.

        The first is this micro-batch's part of the mean over the global batch.
        """
        if self.over:
            loss = self.objective.summed_loss(engine, batch)
            return loss / self.weight, loss.detach()
        if self.same_step and self.matched:
            taught, random = self.previewed.popleft()
            with replayed(random, self.device):
                own = self._learn(engine, batch)
        else:
            taught = self.teach(engine, batch, masks)
            own = self._learn(engine, batch)
            self._measure(engine, batch, masks, own, taught)
            if self.same_step:
                self.rematch()
                self.matched = True
        loss = self.objective.loss(own.logits, batch)
        distance = self._distill(zero.unwrap(engine), batch, masks, own, taught)
        return (1 - self.mu) * loss / self.weight + self.mu * distance, loss.detach()

    def teach(self, engine: nn.Module, batch: Batch, masks: Masks) -> Outputs:
        """The teacher's logits and the states that this step needs, without gradients."""
        asked = {*self.layers, *self.measured}
        with self.teacher.as_teacher(zero.unwrap(engine), masks), self.watcher.seeing(asked) as states:
            logits = self.objective.logits(engine, batch)
        return Outputs(logits, states)

    def _learn(self, engine: nn.Module, batch: Batch) -> Outputs:
        """The student's logits and the states of all its layers."""
        with self.watcher.seeing(self.match) as states:
            logits = self.objective.logits(engine, batch)
        return Outputs(logits, states)

    def _counted(self, batch: Batch) -> list[Tensor]:
        """Which tokens count in each stack, [B, L] or [B, T]."""
        second = self.objective.second(batch)
        return [batch.attention_mask] if second is None else [batch.attention_mask, second]

    def _distill(self, model: nn.Module, batch: Batch, masks: Masks, own: Outputs, taught: Outputs) -> Tensor:
        """L_distill. With masked hidden dimensions the layers are compared on those of `distillation.comparable`."""
        transform, valid = model.get_submodule(TRANSFORM), self._counted(batch)
        kept = distillation.comparable(masks.mask_for(HIDDEN, own.states[0]))
        prediction = distillation.prediction_distance(own.logits, taught.logits)
        total = distillation.prediction_weight(self.run.data.task) * prediction / self.weight
        for layer in self.layers:
            number = self.place[layer]
            shown = transform(own.states[self.match[layer]])
            distance = distillation.layer_distance(shown, taught.states[layer], valid[number], kept)
            total = total + distillation.LAYER_WEIGHT * distance / self.tokens[number]
        return total

    @torch.no_grad()
    def _measure(self, engine: nn.Module, batch: Batch, masks: Masks, own: Outputs, taught: Outputs) -> None:
        """Add a micro-batch's distances between the teacher's `measured` layers and all of the student's."""
        transform, valid = zero.unwrap(engine).get_submodule(TRANSFORM), self._counted(batch)
        kept = distillation.comparable(masks.mask_for(HIDDEN, own.states[0]))
        table = self.distances.view(len(self.measured), -1)
        for candidate, state in own.states.items():
            shown, number = transform(state.detach()), self.place[candidate]
            for row, layer in enumerate(self.measured):
                if self.place[layer] == number:
                    distance = distillation.layer_distance(shown, taught.states[layer], valid[number], kept)
                    table[row, candidate] += distance

    def rematch(self) -> None:
        """Map layers by the distances of this step, summed over ranks. Collective."""
        table = collectives.all_reduce_sum(self.distances).view(len(self.measured), -1)
        self.match |= distillation.nearest(table, self.measured, self.stacks)

    def pending(self) -> Tensor:
        """The distances that `observe` wants summed over ranks at the end of a step; none where `rematch` did that."""
        return self.distances[:0] if self.same_step else self.distances

    def observe(self, reduced: Tensor) -> None:
        """Take `pending`, summed over ranks, of a step with a finite loss: the next step maps layers by it."""
        if reduced.numel():
            table = reduced.view(len(self.measured), -1)
            self.match |= distillation.nearest(table, self.measured, self.stacks)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(values, tensors) that `load_state` takes."""
        best = None if self.best == -float("inf") else self.best
        return {"match": list(self.match.items()), "best": best, "over": self.over}, dict(self.teacher.snapshot)

    def load_state(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take over what `state` gave; the snapshot in the dtype it was taken in."""
        self.match = {int(layer): int(own) for layer, own in values["match"]}
        self.best = -float("inf") if values["best"] is None else values["best"]
        self.over = values["over"]
        # as freshly allocated as the ones they stand for: kernels round differently on memory aligned otherwise
        self.teacher.snapshot = {name: tensor.to(self.device).clone() for name, tensor in tensors.items()}
