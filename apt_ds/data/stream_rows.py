"""Rows of a stream on one process: encoded as records come, shuffled a window at a time, mixed by weight.

Everything here has a `state` that JSON can write. It names the place where a window of rows began, and how many of its
rows were taken. `load` reads the window again. So the same rows follow as without a stop.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apt_ds.config.errors import UserError
from apt_ds.data.mixture_order import PERIOD, pattern
from apt_ds.data.stream_encoders import ArrayRow, Encoder, State
from apt_ds.data.stream_part import StreamPart

_BATCH = 64  # records that are encoded at once


class EncodedPart:
    """The rows of a part, in order."""

    def __init__(self, part: StreamPart, encoder: Encoder) -> None:
        self.part, self.encoder = part, encoder
        self._rows: list[ArrayRow] = []
        self._used, self._last = 0, False  # rows taken of these, and whether these end the pass
        self._before = self._boundary()

    def read(self, count: int) -> list[ArrayRow]:
        """The next `count` rows, fewer at the end of a pass, where the next pass begins.

        Raises:
            UserError: the part has no record, or nothing to train on.
        """
        rows: list[ArrayRow] = []
        while len(rows) < count:
            if self._used == len(self._rows):
                if self._last:
                    self._last = False
                    break
                self._fill()
            more = self._rows[self._used : self._used + count - len(rows)]
            rows += more
            self._used += len(more)
        return rows

    def _fill(self) -> None:
        """Encode the next records."""
        self._before, self._used = self._boundary(), 0
        passes = self.part.passes
        records = self.part.read(_BATCH)
        self._rows, self._last = self.encoder.encode(records) if records else [], self.part.passes > passes
        if self._last:
            if not records and not self._before["part"]["count"]:
                raise UserError(
                    f"{self.part.name} has no record left for process {self.part.rank} of {self.part.world}, after "
                    "those held out. A text file has a record for each 16 KiB. Give more records, fewer processes or, "
                    "where records are held out of it, a smaller --eval_size"
                )
            self.encoder.end_pass()

    def _boundary(self) -> State:
        return {"part": self.part.state(), "encoder": self.encoder.state(), "used": 0, "last": self._last}

    def state(self) -> State:
        """Where the records of the next row begin, and how many of their rows were read."""
        if self._used == len(self._rows):
            return self._boundary()
        return {**self._before, "used": self._used}

    def load(self, state: State) -> None:
        """Read on where `state` was taken."""
        self.part.load(state["part"])
        self.encoder.load(state["encoder"])
        self._rows, self._used, self._last = [], 0, state["last"]
        if state["used"]:
            self._fill()
            self._used = state["used"]


class ShuffledRows:
    """The rows of a source. A window of them is read in order, and permuted by seed and number. It ends with the pass.

    Attributes:
        number: windows that were begun.
        taken: rows taken of the current window.
    """

    def __init__(self, rows: EncodedPart, size: int, seed: Sequence[int]) -> None:
        """size: rows of a window, 1 for no shuffling. seed: another one for each source and process."""
        self.rows, self.size, self.seed = rows, size, list(seed)
        self.number, self.taken = 0, 0
        self._window: list[ArrayRow] = []
        self._start = rows.state()

    def next(self) -> ArrayRow:
        """The next row."""
        if self.taken == len(self._window):
            self._fill()
        self.taken += 1
        return self._window[self.taken - 1]

    def _fill(self) -> None:
        rows: list[ArrayRow] = []
        while not rows:
            self._start = self.rows.state()
            rows = self.rows.read(self.size)
        order = np.random.default_rng([*self.seed, self.number]).permutation(len(rows))
        self._window, self.taken, self.number = [rows[i] for i in order], 0, self.number + 1

    def state(self) -> State:
        """Where the window began, its number, and the rows taken of it."""
        if self.taken == len(self._window):
            return {"rows": self.rows.state(), "number": self.number, "taken": 0}
        return {"rows": self._start, "number": self.number - 1, "taken": self.taken}

    def load(self, state: State) -> None:
        """Read the window again from which `state` took rows."""
        self.rows.load(state["rows"])
        self.number, self.taken, self._window = state["number"], 0, []
        if state["taken"]:
            self._fill()
            self.taken = state["taken"]


class MixedRows:
    """The rows of several sources, each in proportion to its weight. All processes have the same source at a place.

    Attributes:
        place: rows taken.
    """

    def __init__(self, sources: Sequence[ShuffledRows], weights: Sequence[float]) -> None:
        assert len(sources) == len(weights)
        self.sources, self.weights, self.place = list(sources), tuple(weights), 0

    def take(self, count: int) -> list[ArrayRow]:
        """The next rows."""
        chosen = pattern(self.weights).source
        rows = [self.sources[chosen[p % PERIOD]].next() for p in range(self.place, self.place + count)]
        self.place += count
        return rows

    @property
    def dropped(self) -> int:
        """Examples that gave no row, in all that was read."""
        return sum(source.rows.encoder.dropped for source in self.sources)

    def state(self) -> State:
        """The number of rows taken, and the states of the sources."""
        return {"place": self.place, "sources": [source.state() for source in self.sources]}

    def load(self, state: State) -> None:
        """Go on where `state` was taken."""
        self.place = state["place"]
        for source, own in zip(self.sources, state["sources"], strict=True):
            source.load(own)
