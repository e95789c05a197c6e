"""Self-distillation losses (METHOD.md section 7) as pure functions: layers, layer mapping, predictions.

    L_layer = sum over drawn teacher layers i of MSE(Tr(h_student[phi(i)]), h_teacher[i])
    L_pred = KL(teacher's distribution || student's distribution) at temperature 1
    L_distill = a L_pred + 0.9 L_layer, a = 1 for GLUE tasks and 0.1 for other tasks

Every function returns a sum over tokens or examples. The caller divides it by the count of the whole global batch.
The layer mapping phi of a step comes from distances that are summed over a whole global batch. So no split of that
batch over micro-batches and ranks changes losses or mapping.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from apt_ds.config.tasks import GLUE_TASKS
from apt_ds.losses.task_loss import Logits

QUARTERS = 4
LAYER_COEFFICIENT = 0.9


def prediction_coefficient(task: str) -> float:
    """The factor a of L_pred: 1 for a GLUE task, for T5 too, and 0.1 for every other task."""
    return 1.0 if task in GLUE_TASKS else 0.1


def draw_layers(stacks: list[list[int]], step: int, seed: int) -> list[int]:
    """Draw the teacher layers of a step, one from each quarter of every stack.

    Args:
        stacks: Layer numbers of the encoder, of the decoder, or of both.
        step: Optimizer step.
        seed: Seed of the run. The same step and seed give the same layers on every rank.

    Returns:
        Layer numbers, four a stack. A stack of fewer layers gives all of them.
    """
    generator = np.random.default_rng([seed, step])
    layers = []
    for stack in stacks:
        for quarter in np.array_split(np.array(stack), min(QUARTERS, len(stack))):
            layers.append(int(generator.choice(quarter)))
    return layers


def layer_distance(student: Tensor, teacher: Tensor, token_mask: Tensor, hidden_mask: Tensor | None) -> Tensor:
    """Squared difference of two layers' outputs: mean over compared dimensions, sum over tokens.

    Args:
        student: [B, L, d], after Tr.
        teacher: [B, L, d].
        token_mask: [B, L], 1 for tokens that count and 0 for padding.
        hidden_mask: [d], the weight of each hidden dimension, see `compared_dimensions`. None means all ones.

    Returns:
        fp32 scalar.
    """
    squares = (student.float() - teacher.float()).square()
    mean = squares.mean(-1) if hidden_mask is None else squares @ (hidden_mask.float() / hidden_mask.float().sum())
    return (mean * token_mask).sum()


def compared_dimensions(mask: Tensor | None) -> Tensor | None:
    """The hidden dimensions on which a masked student and an unmasked teacher are compared.

    A dimension counts while its mask is 1. The mask scales the student's value of any other dimension but not the
    teacher's. Their difference would train a dimension that is being removed. Where no mask is 1, the dimensions with
    the largest mask count.

    Args:
        mask: [d], the student's mask of the hidden dimensions. None means all ones.

    Returns:
        fp32 [d], 1 or 0. None means all dimensions.
    """
    return None if mask is None else (mask == mask.max()).float()


def prediction_distance(student: Logits, teacher: Logits) -> Tensor:
    """L_pred, summed over predictions.

    Args:
        student: Logits of the task, each [predictions, choices]. One choice is a regression.
        teacher: Logits of the same shapes.

    Returns:
        fp32 scalar. KL divergence in nats, or the squared difference of a regression. Two outputs (start and end of
        an answer) give their mean.
    """
    distances = []
    for own, other in zip(student, teacher, strict=True):
        if own.shape[-1] == 1:
            distances.append((own.float() - other.float()).square().sum())
        else:
            student_logs, teacher_logs = own.float().log_softmax(-1), other.float().log_softmax(-1)
            distances.append(F.kl_div(student_logs, teacher_logs, reduction="sum", log_target=True))
    return torch.stack(distances).mean()


def nearest_layers(distances: Tensor, teacher_layers: list[int], stacks: list[list[int]]) -> dict[int, int]:
    """The layer mapping phi: to each teacher layer the nearest student layer of the same stack.

    Args:
        distances: [len(teacher_layers), all layers], from each of `teacher_layers` to every student layer.
        teacher_layers: Layer numbers of the rows.
        stacks: Layer numbers of the encoder, of the decoder, or of both.

    Returns:
        Teacher layer to student layer. Of equally near layers the lowest.
    """
    mapping = {}
    for row, layer in zip(distances.tolist(), teacher_layers, strict=True):
        stack = next(stack for stack in stacks if layer in stack)
        mapping[layer] = min(stack, key=lambda own: (row[own], own))
    return mapping
