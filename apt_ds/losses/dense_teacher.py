"""The dense model as teacher of a language model (METHOD.md section 13): losses of micro-batches, distances of steps.

    L = (1 - a) CE + a T^2 KL(dense || student), over trained tokens

The batch has what the dense model says of its tokens (`Batch.teacher_ids`). A batch without it has the task's loss.
"""

from __future__ import annotations

from torch import Tensor, nn

from apt_ds.data.batching import Batch
from apt_ds.losses.distilled_cross_entropy import DistilledLoss
from apt_ds.losses.task_loss import TaskLoss
from apt_ds.losses.token_losses import TokenLoss


class DenseTeacher:
    """Adds the distance to the dense model to the loss of batches that know the dense model's tokens.

    Attributes:
        weight: a, the distance's part of the loss.
        temperature: T.
        distance: KL(dense || student) of the last step with a finite loss, mean over its tokens in nats. None before.
    """

    def __init__(self, weight: float, temperature: float) -> None:
        self.weight, self.temperature = weight, temperature
        self.distance: float | None = None
        self._sum: Tensor | None = None

    def begin(self) -> None:
        """Start a step."""
        self._sum = None

    def loss(self, task_loss: TaskLoss, model: nn.Module, batch: Batch) -> DistilledLoss:
        """The loss of a batch, summed over its trained tokens."""
        assert isinstance(task_loss, TokenLoss)
        loss = task_loss.distilled_loss(model, batch, self.weight, self.temperature)
        self._sum = loss.distance if self._sum is None else self._sum + loss.distance
        return loss

    def pending(self) -> Tensor | None:
        """The distance summed over this rank's tokens of the step, [1]. None if no batch had a teacher."""
        return None if self._sum is None else self._sum.reshape(1)

    def observe(self, summed: Tensor, tokens: int) -> None:
        """Take `pending`, summed over ranks, of a step with a finite loss.

        Args:
            summed: [1], on the CPU.
            tokens: trained tokens of the global batch.
        """
        if self._sum is not None and len(summed) == 1:
            self.distance = float(summed[0]) / tokens


def has_teacher(batch: Batch) -> bool:
    """Whether a batch knows what the dense model says of its tokens."""
    return batch.teacher_ids is not None
