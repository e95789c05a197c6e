"""What a run learns from: its task, and while it prunes a teacher within (section 7).

L = mu L_distill + (1 - mu) L_task, mu from 0 to 1 over the pruning phase; after it the task alone. Every term is a sum
over a micro-batch divided by what the global batch weighs, so that no split changes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from apt_ds import distill, schedule, zero
from apt_ds.anatomy import HIDDEN, Anatomy
from apt_ds.config import RunConfig
from apt_ds.data.batches import Batch
from apt_ds.data.rows import IGNORED, Row
from apt_ds.masks import Masks
from apt_ds.objective import OBJECTIVES, Logits
from apt_ds.profiling import timed
from apt_ds.teacher import TRANSFORM, Teacher, Watcher, attach, detach, slot


class Lesson:
    """Everything on it is the same on all ranks.

    phase: steps the teacher lives for, 0 without one; match: teacher's layer to the student's it is compared with;
    best: the student's score when the teacher last learnt from it.
    """

    def __init__(self, run: RunConfig, kind: str, anatomy: Anatomy, phase: int, device: torch.device) -> None:
        self.run, self.kind, self.device = run, kind, device
        self.objective = OBJECTIVES[kind]
        self.phase = phase if run.distill else 0
        self.teacher, self.watcher = Teacher(), Watcher(anatomy)
        second = anatomy.second
        stacks: list[list[int]] = [[], []]
        for number, path in enumerate(anatomy.layers):
            stacks[bool(second) and path.startswith(second)].append(number)
        self.stacks = [stack for stack in stacks if stack]
        self.match = {layer: layer for stack in self.stacks for layer in stack}
        self.best = -float("inf")
        self.over = not run.distill
        self._begin(0)

    def prepare(self, model: nn.Module, anatomy: Anatomy) -> Anatomy:
        """Put Tr on a model; returns the anatomy with it."""
        if self.over:
            return anatomy
        attach(model, anatomy.sizes.hidden, self.run.seed)
        return replace(anatomy, slots=(*anatomy.slots, slot()))

    def end(self, model: nn.Module, anatomy: Anatomy) -> Anatomy:
        """Let go of teacher and Tr, once the phase is over and no engine is on the model."""
        detach(model)
        self.over, self.teacher = True, Teacher()
        return replace(anatomy, slots=tuple(s for s in anatomy.slots if s.path != TRANSFORM))

    def due(self, step: int) -> bool:
        """Whether the phase ends after `step` updates."""
        return not self.over and step >= self.phase

    def dress(self, model: nn.Module) -> None:
        """Hooks on; the teacher starts as the student is, if it knows nothing yet. Collective."""
        if self.over:
            return
        self.watcher.install(model)
        if not self.teacher.snapshot:
            self.teacher.learn(model)

    def undress(self) -> None:
        """Hooks off."""
        self.watcher.remove()

    @contextmanager
    def riding(self, state: zero.EngineState) -> Iterator[None]:
        """The teacher's values follow every change of shapes inside, as the moments in `state` do."""
        for name, value in self.teacher.snapshot.items():
            state.tensors[name]["past"] = value
        yield
        self.teacher.snapshot = {name: state.tensors[name].pop("past") for name in self.teacher.snapshot}

    def follow(self, score: float, model: nn.Module) -> bool:
        """At an adjustment: the teacher learns from a student that has not got worse. Collective."""
        if self.over or score < self.best:
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
        self.mu = 0.0 if self.over else schedule.distill_weight(step, self.phase)
        self.layers = distill.drawn(self.stacks, step, self.run.seed)
        self.following = distill.drawn(self.stacks, step + 1, self.run.seed)
        count = 0 if self.over else len(self.following) * sum(map(len, self.stacks))
        self.distances = torch.zeros(count, device=self.device)

    @timed("forward")
    def micro(self, engine: nn.Module, batch: Batch, masks: Masks) -> tuple[Tensor, Tensor]:
        """(what to go backward from, the task's loss summed) of a micro-batch.

        The first is this micro-batch's part of the mean over the global batch.
        """
        if self.over:
            loss = self.objective.summed_loss(engine, batch)
            return loss / self.weight, loss.detach()
        model = zero.plain(engine)
        asked = {*self.layers, *self.following}
        with self.teacher.speaking(model, masks), self.watcher.seeing(asked) as taught:
            said = self.objective.logits(engine, batch)
        with self.watcher.seeing(self.match) as states:
            logits = self.objective.logits(engine, batch)
        loss = self.objective.loss(logits, batch)
        distance = self._distill(model, batch, masks, (logits, states), (said, taught))
        return (1 - self.mu) * loss / self.weight + self.mu * distance, loss.detach()

    def _distill(
        self,
        model: nn.Module,
        batch: Batch,
        masks: Masks,
        own: tuple[Logits, dict[int, Tensor]],
        other: tuple[Logits, dict[int, Tensor]],
    ) -> Tensor:
        """L_distill; also takes the distances that the next step's mapping is read off."""
        transform, (logits, states), (said, taught) = model.get_submodule(TRANSFORM), own, other
        second = self.objective.second(batch)
        valid = [batch.attention_mask] if second is None else [batch.attention_mask, second]
        kept = masks.worn(HIDDEN, states[0])
        total = distill.prediction_weight(self.kind) * distill.prediction_distance(logits, said) / self.weight
        place = {layer: number for number, stack in enumerate(self.stacks) for layer in stack}
        for layer in self.layers:
            number = place[layer]
            shown = transform(states[self.match[layer]])
            distance = distill.layer_distance(shown, taught[layer], valid[number], kept)
            total = total + distill.LAYER_WEIGHT * distance / self.tokens[number]
        with torch.no_grad():
            table = self.distances.view(len(self.following), -1)
            for candidate, state in states.items():
                shown, number = transform(state.detach()), place[candidate]
                for row, layer in enumerate(self.following):
                    if place[layer] == number:
                        table[row, candidate] += distill.layer_distance(shown, taught[layer], valid[number], kept)
        return total

    def observe(self, reduced: Tensor) -> None:
        """Take the distances, summed over ranks, of a step with a finite loss."""
        if reduced.numel():
            table = reduced.view(len(self.following), -1)
            self.match |= distill.nearest(table, self.following, self.stacks)

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
