"""What a student is compared with its teacher by: layers, layer mapping, predictions (section 7). Pure.

The mapping of a step is read off the distances of the step before: they are summed over the global batch, so that it
does not depend on how that is split, and cost no pass of their own. Departure: the method recomputes it within a step.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from apt_ds.objective import Logits
from apt_ds.tasks import CLASSIFICATION

QUARTERS = 4
LAYER_WEIGHT = 0.9


def prediction_weight(kind: str) -> float:
    """The factor of the prediction loss: GLUE 1, SQuAD and what is generated 0.1."""
    return 1.0 if kind == CLASSIFICATION else 0.1


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

    student, teacher: [B, L, d]; valid: [B, L], 1 or 0; kept: [d], the hidden dimensions' masks, None: all ones.
    """
    squares = (student.float() - teacher.float()).square()
    mean = squares.mean(-1) if kept is None else squares @ (kept.float() / kept.float().sum())
    return (mean * valid).sum()


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
