"""What a student is compared with its teacher by: layers, layer mapping, predictions (section 7). Pure.

The layer mapping of a step comes from distances that are summed over a whole global batch. So it does not depend on how
that batch is split over micro-batches and ranks.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from apt_ds.config.tasks import GLUE_TASKS
from apt_ds.losses.task_losses import Logits

QUARTERS = 4
LAYER_WEIGHT = 0.9


def prediction_weight(task: str) -> float:
    """The factor of the prediction loss: 1 for a GLUE task, in classes or in words, and 0.1 for every other task."""
    return 1.0 if task in GLUE_TASKS else 0.1


def drawn(stacks: list[list[int]], step: int, seed: int) -> list[int]:
    """The teacher's layers of a step, one from each quarter of every stack; fewer where a stack has fewer layers."""
    generator = np.random.default_rng([seed, step])
    found = []
    for stack in stacks:
        for quarter in np.array_split(np.array(stack), min(QUARTERS, len(stack))):
            found.append(int(generator.choice(quarter)))
    return found


def layer_distance(student: Tensor, teacher: Tensor, valid: Tensor, kept: Tensor | None) -> Tensor:
    """Squared difference, mean over kept dimensions, sum over counted tokens, fp32 scalar.

    student, teacher: [B, L, d]; valid: [B, L], 1 or 0; kept: [d], the weight of each hidden dimension (see
    `comparable`), None: all ones.
    """
    squares = (student.float() - teacher.float()).square()
    mean = squares.mean(-1) if kept is None else squares @ (kept.float() / kept.float().sum())
    return (mean * valid).sum()


def comparable(mask: Tensor | None) -> Tensor | None:
    """The hidden dimensions that a student and an unmasked teacher are compared on, 1 or 0, [d]; None: all.

    mask: the student's mask of the hidden dimensions, [d], None: all ones. A dimension counts while its mask is 1. The
    student's value of any other dimension is scaled by its mask and the teacher's value is not, so their difference
    would pull on a dimension that is being removed. Where no mask is 1, the dimensions with the largest mask count.
    """
    return None if mask is None else (mask == mask.max()).float()


def prediction_distance(student: Logits, teacher: Logits) -> Tensor:
    """KL divergence from the teacher's distribution at temperature 1, summed over what is predicted, in nats, fp32.

    Of a number, which has no distribution: the squared difference. Of both ends of an answer: their mean.
    """
    parts = []
    for own, other in zip(student, teacher, strict=True):
        if own.shape[-1] == 1:
            parts.append((own.float() - other.float()).square().sum())
        else:
            logs = (logits.float().log_softmax(-1) for logits in (own, other))
            parts.append(F.kl_div(*logs, reduction="sum", log_target=True))
    return torch.stack(parts).mean()


def nearest(distances: Tensor, layers: list[int], stacks: list[list[int]]) -> dict[int, int]:
    """Teacher's layer to the student's that is nearest to it, in the same stack.

    distances: [len(layers), all layers], of each of the teacher's `layers` to every one of the student's.
    """
    found = {}
    for row, layer in zip(distances.tolist(), layers, strict=True):
        stack = next(stack for stack in stacks if layer in stack)
        found[layer] = min(stack, key=lambda own: (row[own], own))
    return found
