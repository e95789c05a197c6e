"""The micro-batches of a step on this rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from apt_ds.config.run_config import RunConfig
from apt_ds.data.batching import Batch, collate
from apt_ds.data.packing import pack
from apt_ds.data.tokenized import Row
from apt_ds.runtime import collectives, heartbeat, profiler
from apt_ds.training.datasets import Data


class MicroBatches:
    """Makes this rank's micro-batches from the training set. Steps and micro-batches count from 0."""

    def __init__(self, run: RunConfig, data: Data, pad_id: int, device: torch.device) -> None:
        self.run_config, self.data, self.pad_id, self.device = run, data, pad_id, device
        self.per_step = run.optim.gradient_accumulation_steps
        self.per_device = run.optim.per_device_train_batch_size

    def rows(self, step: int) -> list[Row]:
        """All examples of a step's global batch."""
        return [self.data.train[index] for index in self.data.order.indices(step)]

    def example_offset(self, micro: int) -> int:
        """Place of this rank's first example of a micro-batch in the global batch."""
        return (micro * collectives.world_size() + collectives.rank()) * self.per_device

    @profiler.timed("data")
    def on_host(self, step: int, micro: int) -> Batch:
        """A micro-batch on the CPU. Reading its values needs no wait for the device."""
        indices = self.data.order.micro(step, micro, collectives.rank(), collectives.world_size(), self.per_device)
        rows = [self.data.train[index] for index in indices]
        if self.run_config.data.packing:
            return pack(rows, self.pad_id, self.run_config.data.max_seq_length, self.run_config.model.one_row)
        return collate(rows, self.pad_id)

    @profiler.timed("data")
    def to_device(self, batch: Batch) -> Batch:
        """The batch on this rank's device. Labels stay on the CPU, where the loss reads which tokens are trained."""
        return replace(batch.to(self.device), labels=batch.labels)

    def on_device(self, step: int, micro: int) -> Batch:
        """A micro-batch on this rank's device, labels on the CPU."""
        return self.to_device(self.on_host(step, micro))

    def after_first(self, step: int) -> Iterator[Batch]:
        """All micro-batches of a step except the first, on this rank's device."""
        for micro in range(1, self.per_step):
            heartbeat.progress()
            yield self.on_device(step, micro)
