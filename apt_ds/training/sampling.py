"""Which rows of a set each optimizer step takes, and how many it takes of each source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from apt_ds.config.run_config import RunConfig
from apt_ds.data.batching import GlobalOrder
from apt_ds.data.length_order import LengthOrder, Order
from apt_ds.data.mixture_order import MixtureOrder, shares_of
from apt_ds.data.rows import Joined, Rows
from apt_ds.data.sources import WeightedSource
from apt_ds.training.data_figures import SourceFigures


@dataclass(frozen=True)
class Sampled:
    """Rows, and which of them each step takes.

    Attributes:
        rows: the rows.
        order: the rows of each step.
        sources: where the rows come from, in order.
    """

    rows: Rows
    order: Order
    sources: tuple[WeightedSource, ...] = field(default=())

    def figures(self, steps: int) -> list[SourceFigures]:
        """Each source, with the number of examples that `steps` steps take from it."""
        inner = self.order.order if isinstance(self.order, LengthOrder) else self.order
        sizes = sizes_of(self.rows)
        weights = [size / len(self.rows) for size in sizes]
        if isinstance(inner, MixtureOrder):
            weights = shares_of(inner.weights)
        return [
            {"name": source.name, "weight": weight, "rows": size, "seen": count}
            for source, weight, size, count in zip(self.sources, weights, sizes, self._seen(steps, sizes), strict=True)
        ]

    def _seen(self, steps: int, sizes: list[int]) -> list[int]:
        """Examples of each source in the first `steps` steps."""
        order, ends = self.order, np.cumsum(sizes)
        if isinstance(order, LengthOrder) and steps == order.total_steps:
            # groups move no row past the last step
            order = order.order
        if isinstance(order, MixtureOrder):
            return order.seen(steps)
        if isinstance(order, GlobalOrder):
            return [int(part.sum()) for part in np.split(order.times_seen(steps), ends[:-1])]
        drawn = [index for step in range(steps) for index in order.indices(step)]
        return np.bincount(np.searchsorted(ends, drawn, side="right"), minlength=len(sizes)).tolist()


def sampling(run: RunConfig, rows: Rows, sources: Sequence[WeightedSource], world: int) -> tuple[Order, int]:
    """The order of the training rows on `world` ranks, and the run's optimizer steps."""
    order = order_of(rows, sources, run.optim.global_batch(world), run.optim.seed)
    steps = run.optim.max_steps if run.optim.max_steps > 0 else order.steps(run.optim.num_train_epochs)
    if run.data.group_by_length:
        return LengthOrder(order, rows.lengths, run.optim.seed, steps), steps
    return order, steps


def calibration_order(run: RunConfig, rows: Rows, sources: Sequence[WeightedSource], world: int) -> Order:
    """The order of the rows that score before a one-shot cut, on `world` ranks."""
    order = order_of(rows, sources, run.optim.global_batch(world), run.optim.seed)
    if run.data.group_by_length:
        return LengthOrder(order, rows.lengths, run.optim.seed, run.pruning.calibration_steps)
    return order


def sizes_of(rows: Rows) -> list[int]:
    """The number of rows of each source."""
    return [len(part) for part in rows.parts] if isinstance(rows, Joined) else [len(rows)]


def order_of(rows: Rows, sources: Sequence[WeightedSource], global_batch: int, seed: int) -> GlobalOrder | MixtureOrder:
    """The order of the rows of some sources: by their weights if there are several with weights."""
    weights = tuple(source.weight for source in sources if source.weight is not None)
    if len(sources) > 1 and weights:
        return MixtureOrder(tuple(sizes_of(rows)), weights, global_batch, seed)
    return GlobalOrder(len(rows), global_batch, seed)
