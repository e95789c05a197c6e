"""The dense model in memory beside the student: what it says of the training tokens is computed with every batch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from apt_ds.config.run_config import RunConfig
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.data.batching import Batch
from apt_ds.losses.task_losses import TASK_LOSSES
from apt_ds.losses.token_losses import TokenLoss
from apt_ds.models import loading
from apt_ds.models.loading import Base
from apt_ds.runtime import zero
from apt_ds.runtime.profiler import timed


class LiveTeacher:
    """A second copy of the base model, frozen and in `--base_bits`. Every rank has all of it, under ZeRO-3 too."""

    def __init__(self, run: RunConfig, base: Base) -> None:
        """Load the model. Collective.

        Raises:
            UserError: the model cannot be loaded.
        """
        task_loss = TASK_LOSSES[LANGUAGE_MODEL]
        assert isinstance(task_loss, TokenLoss)
        self.task_loss, self.model = task_loss, _load(run, base)
        self.k = min(run.pruning.distill_top_k, base.config.vocab_size)
        self.temperature = run.pruning.distill_temperature
        task_loss.check(self.model, zero.device())

    @torch.no_grad()
    @timed("forward")
    def add(self, batch: Batch) -> Batch:
        """A batch with what the dense model says of its trained tokens.

        Args:
            batch: on the device, labels on the CPU.
        """
        ids, log_probabilities = self.task_loss.top_tokens(self.model, batch, self.k, self.temperature)
        return replace(batch, teacher_ids=ids, teacher_log_probabilities=log_probabilities)


def _load(run: RunConfig, base: Base) -> nn.Module:
    """The base model for forward passes. The random numbers of the run stay as they are."""
    device = zero.device()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # weights that are drawn are those of the student
        torch.manual_seed(run.optim.seed)
        model = loading.load_model(base, run)
    return model.eval().requires_grad_(False)
