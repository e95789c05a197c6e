"""The order of `--group_by_length`: examples of similar length share a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock
from typing import Protocol

import numpy as np

from apt_ds.data.batching import GlobalOrder
from apt_ds.data.mixture_order import MixtureOrder

MOST_STEPS = 50  # steps of a window, as transformers groups them
LEAST_WINDOWS = 4  # windows of an epoch


class Order(Protocol):
    """Which rows each optimizer step sees, as a pure function of the step."""

    @property
    def n(self) -> int:
        """Number of rows."""
        ...

    @property
    def global_batch(self) -> int:
        """Rows of a step."""
        ...

    def indices(self, step: int) -> list[int]:
        """The row indices of an optimizer step, counted from 0."""
        ...

    def steps(self, epochs: float) -> int:
        """Optimizer steps of `epochs` passes over the data."""
        ...


@dataclass(frozen=True)
class LengthOrder:
    """Sorts the rows of a window of steps by length, and shuffles the steps inside the window.

    A window holds the same rows as without grouping. A window also ends at `total_steps`, so that the whole run sees
    the same rows.

    Attributes:
        order: the order whose steps are grouped.
        lengths: tokens of each row, int64 [rows].
        total_steps: steps of the run.
        seed: shuffles the steps.
    """

    order: GlobalOrder | MixtureOrder
    lengths: np.ndarray = field(repr=False, compare=False)
    seed: int
    total_steps: int
    _windows: dict[int, list[list[int]]] = field(default_factory=dict, repr=False, compare=False)
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.order.n

    @property
    def global_batch(self) -> int:
        """Rows of a step."""
        return self.order.global_batch

    @property
    def window(self) -> int:
        """Steps of a window: at most `MOST_STEPS`, and at most a quarter of an epoch."""
        return max(1, min(MOST_STEPS, self.n // (self.global_batch * LEAST_WINDOWS)))

    def steps(self, epochs: float) -> int:
        """Optimizer steps of `epochs` passes over the data."""
        return self.order.steps(epochs)

    def indices(self, step: int) -> list[int]:
        """The row indices of optimizer step `step`, counted from 0, from the longest row to the shortest."""
        first = step - step % self.window
        if first < self.total_steps <= step:
            first = self.total_steps
        with self._lock:
            if first not in self._windows:
                while len(self._windows) > 1:
                    # steps are asked for in order, some of them ahead
                    del self._windows[min(self._windows)]
                self._windows[first] = self._grouped(first, self._end(first))
            return self._windows[first][step - first]

    def _end(self, first: int) -> int:
        end = first - first % self.window + self.window
        return self.total_steps if first < self.total_steps < end else end

    def _grouped(self, first: int, end: int) -> list[list[int]]:
        """The rows of steps `first` to `end`, by step."""
        rows = np.array([index for step in range(first, end) for index in self.order.indices(step)], np.int64)
        by_length = rows[np.argsort(-self.lengths[rows], kind="stable")].reshape(end - first, -1)
        shuffled = np.random.default_rng([self.seed, first]).permutation(end - first)
        return by_length[shuffled].tolist()
