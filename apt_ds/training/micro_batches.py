"""The micro-batches of a step on this rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch

from apt_ds.config.run_config import RunConfig
from apt_ds.data.batching import Batch, collate
from apt_ds.data.length_order import Order
from apt_ds.data.packing import pack_groups
from apt_ds.data.rows import Rows
from apt_ds.data.step_layout import StepLayout
from apt_ds.data.teacher_cache import TeacherCache
from apt_ds.data.tokenized import Row
from apt_ds.runtime import collectives, heartbeat, profiler
from apt_ds.training.prefetch import Prefetcher


@dataclass
class StepData:
    """What a step reads.

    Attributes:
        rows: all examples of the global batch, in the order of the step.
        layout: how ranks, micro-batches and rows share them.
        batches: this rank's micro-batches on the CPU, as far as they are made.
        indices: numbers of the rows in the set. Empty for a stream.
    """

    rows: list[Row]
    layout: StepLayout
    batches: list[Batch] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)


class MicroBatches:
    """Makes this rank's micro-batches of a set. Steps and micro-batches count from 0."""

    def __init__(self, run: RunConfig, rows: Rows, order: Order, pad_id: int, device: torch.device) -> None:
        self.run_config, self.set, self.order, self.pad_id, self.device = run, rows, order, pad_id, device
        self.per_step = run.optim.gradient_accumulation_steps
        self.per_device = run.optim.per_device_train_batch_size
        # threads have no collectives of their own
        self._rank, self._world = collectives.rank(), collectives.world_size()
        self._prefetcher = Prefetcher(self._make, run.data.dataloader_num_workers)
        self._current: tuple[int, StepData] | None = None
        self._teacher: TeacherCache | None = None
        self._live: Callable[[Batch], Batch] | None = None

    def add_teacher(self, teacher: TeacherCache) -> None:
        """Add what a teacher says of the trained tokens to every micro-batch. Call it before the first step."""
        self._teacher = teacher

    def add_live_teacher(self, add: Callable[[Batch], Batch]) -> None:
        """Let `add` add what a teacher says to every micro-batch on the device. Call it before the first step."""
        self._live = add

    def taught(self, batch: Batch) -> Batch:
        """A micro-batch on this rank's device, with what a live teacher says of it, if there is one."""
        return batch if self._live is None else self._live(batch)

    @profiler.timed("data")
    def step(self, step: int) -> StepData:
        """What a step reads. The last step is kept."""
        if self._current is None or self._current[0] != step:
            self._current = step, self._prefetcher.get(step)
        return self._current[1]

    def rows(self, step: int) -> list[Row]:
        """All examples of a step's global batch."""
        return self.step(step).rows

    def example_offset(self, micro: int) -> int:
        """Place of this rank's first example of a micro-batch in the global batch, unless examples are packed."""
        return self._slot(micro) * self.per_device

    def members(self, step: int, micro: int) -> list[list[tuple[int, int]]]:
        """The examples of each row of a micro-batch, in order: the place in the step, and the number of tokens."""
        layout = self.step(step).layout
        return [[(i, layout.lengths[i]) for i in row] for row in layout.slots[self._slot(micro)]]

    @profiler.timed("data")
    def on_host(self, step: int, micro: int) -> Batch:
        """A micro-batch on the CPU. Reading its values needs no wait for the device."""
        data = self.step(step)
        return data.batches[micro] if data.batches else self._collate(data, micro)

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

    def close(self) -> None:
        """End the threads that make batches ahead."""
        self._prefetcher.close()

    def _slot(self, micro: int) -> int:
        return micro * self._world + self._rank

    def _make(self, step: int) -> StepData:
        """A step's data. With threads its micro-batches too, in pinned memory for a GPU."""
        indices = self.order.indices(step)
        rows = [self.set[index] for index in indices]
        data = StepData(rows, layout_of(self.run_config, self.set, indices, self.slots), indices=indices)
        if self._prefetcher.workers:
            batches = [self._collate(data, micro) for micro in range(self.per_step)]
            data.batches = [batch.pinned() for batch in batches] if self.device.type == "cuda" else batches
        return data

    @property
    def slots(self) -> int:
        """Micro-batches of a step on all ranks."""
        return self.per_step * self._world

    def _collate(self, data: StepData, micro: int) -> Batch:
        groups = data.layout.slots[self._slot(micro)]
        members = [i for group in groups for i in group]
        if self.run_config.data.packing:
            batch = pack_groups(data.rows, groups, self.pad_id)
        else:
            batch = collate([data.rows[i] for i in members], self.pad_id)
        if self._teacher is None:
            return batch
        # trained tokens of a batch come row after row, and example after example in a packed row
        ids, log_probabilities = self._teacher.tokens_of([data.indices[i] for i in members])
        return replace(
            batch, teacher_ids=torch.from_numpy(ids), teacher_log_probabilities=torch.from_numpy(log_probabilities)
        )


def layout_of(run: RunConfig, rows: Rows, indices: list[int], slots: int) -> StepLayout:
    """The layout of a step's rows by the run's options.

    Args:
        run: the options.
        rows: the set.
        indices: the rows of the step.
        slots: micro-batches of a step on all ranks.
    """
    return layout_of_lengths(run, rows.lengths[indices].tolist(), slots)


def layout_of_lengths(run: RunConfig, lengths: list[int], slots: int) -> StepLayout:
    """`layout_of` for the lengths of a step's rows, in tokens."""
    if run.data.packing:
        return StepLayout.packed(lengths, slots, run.data.max_seq_length, run.model.one_row)
    return StepLayout.padded(lengths, slots)
