"""A student and its teacher on plain models, and the loss of one step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from apt_ds.config.resolve import resolve
from apt_ds.config.tasks import ANSWERS, CLASSIFICATION, GENERATION
from apt_ds.data.batching import Batch, collate
from apt_ds.data.tokenized import Row
from apt_ds.losses.self_distillation import SelfDistillation
from apt_ds.losses.task_loss import Logits
from apt_ds.losses.task_losses import TASK_LOSSES
from apt_ds.losses.teacher_phase import TeacherPhase
from apt_ds.losses.training_loss import TrainingLoss
from apt_ds.models import adapter, task_heads
from apt_ds.models.architectures import anatomy_of, architecture_of
from apt_ds.models.blocks import HIDDEN, Anatomy, block_slices
from apt_ds.pruning.masks import Masks
from tests.support import tiny
from tests.support.paths import ROOT

KINDS = ("bert-classes", "roberta-answers", "t5-gated", "modernbert-classes", "deberta-answers")
CPU = torch.device("cpu")


def rows(kind: str) -> list[Row]:
    """Four rows of different lengths."""
    generator = torch.Generator().manual_seed(5)

    def draw(length: int) -> list[int]:
        return torch.randint(4, 200, (length,), generator=generator).tolist()

    more = {
        CLASSIFICATION: [{"targets": [i % 2]} for i in range(4)],
        ANSWERS: [{"targets": [1, 2 + i]} for i in range(4)],
        GENERATION: [{"labels": draw(length)} for length in (3, 6, 4, 2)],
    }[tiny.TASKS[kind]]
    return [{"input_ids": draw(length)} | own for length, own in zip((9, 5, 12, 7), more, strict=True)]


@dataclass
class Student:
    """A student in the middle of distillation: masks half down, adapters other than the teacher's."""

    model: PreTrainedModel
    anatomy: Anatomy
    masks: Masks
    training_loss: TrainingLoss

    @property
    def phase(self) -> TeacherPhase:
        """The phase of the teacher."""
        return self.training_loss.phase

    @property
    def distillation(self) -> SelfDistillation:
        """What the teacher adds to the loss."""
        return self.training_loss.distillation


def started(kind: str, *flags: str) -> Student:
    model = tiny.small(kind)
    anatomy = anatomy_of(model.config, tiny.TASKS[kind])
    architecture_of(model.config).prepare(model, anatomy)
    adapter.attach(model, anatomy, ("q", "v", "up"), rank=3, seed=1)
    task_heads.attach(model, anatomy)
    words = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--pruning", "gradual", "--distill", *flags]
    run = resolve(words)
    training_loss = TrainingLoss(run, tiny.TASKS[kind], anatomy, 10, CPU)
    anatomy = training_loss.phase.prepare(model, anatomy)
    masks = Masks(anatomy)
    masks.install(model.train())
    for _, module in adapter.adapters(model):
        module.lora_B.data.normal_(0, 0.1)
    training_loss.install_hooks(model)
    for _, module in adapter.adapters(model):
        module.lora_B.data.normal_(0, 0.1)
    model.get_submodule("transform").lora_B.data.normal_(0, 0.1)
    values = np.ones(anatomy.sizes.total())
    values[dict(block_slices(anatomy.sizes))[HIDDEN]][:4] = 0.0
    values[::5] = 0.5
    masks.set(values)
    return Student(model, anatomy, masks, training_loss)


def logits_of(model: nn.Module, kind: str, batch: Batch) -> Logits:
    with torch.no_grad():
        return TASK_LOSSES[tiny.TASKS[kind]].logits(model.eval(), batch)


def step_of(student: Student, kind: str, parts: list[slice], step: int) -> tuple[float, dict[str, Tensor], Tensor]:
    """(loss, gradients, distances) of the four rows in micro-batches."""
    student.training_loss.begin(step, rows(kind))
    total = 0.0
    if student.distillation.previews:
        student.distillation.preview(student.model, (collate(rows(kind)[part], 0) for part in parts[1:]), student.masks)
    for part in parts:
        loss, _ = student.training_loss.micro_batch_loss(student.model, collate(rows(kind)[part], 0), student.masks)
        loss.backward()
        total += loss.item()
    gradients = {n: p.grad.clone() for n, p in student.model.named_parameters() if p.grad is not None}
    student.model.zero_grad()
    return total, gradients, student.distillation.matcher.distances.clone()


def mapped(student: Student) -> dict[int, int]:
    """The student layer of each teacher layer that the step measures."""
    matcher = student.distillation.matcher
    return {layer: matcher.mapping[layer] for layer in matcher.measured_layers}
