"""Sets of token rows: what a step reads, whether it comes from one source or several."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np

from apt_ds.data.splitting import cannot_hold_out
from apt_ds.data.tokenized import Row


class Rows(Protocol):
    """Token rows by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64 [rows]."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex digest of all that the rows hold."""
        ...

    @property
    def dropped(self) -> int:
        """Examples that training left out."""
        ...


class Joined:
    """The rows of several sets, one set after the other.

    Attributes:
        parts: the sets.
        offsets: index of the first row of each set, and the number of all rows, int64 [sets + 1].
        dropped: examples that the sets left out.
    """

    def __init__(self, parts: Sequence[Rows], label: str = "") -> None:
        """Join sets.

        Args:
            parts: at least one set.
            label: what else decides the order of the rows, such as weights. It goes into the fingerprint.
        """
        assert parts
        self.parts, self.label = tuple(parts), label
        self.offsets = np.cumsum([0, *(len(part) for part in self.parts)])
        self.dropped = sum(part.dropped for part in self.parts)

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def __getitem__(self, index: int) -> Row:
        part = int(np.searchsorted(self.offsets, index, side="right")) - 1
        return self.parts[part][index - int(self.offsets[part])]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64 [rows]."""
        return np.concatenate([part.lengths for part in self.parts])

    @cached_property
    def fingerprint(self) -> str:
        """sha256 hex digest of the sets' fingerprints and the label."""
        text = "\n".join([self.label, *(part.fingerprint for part in self.parts)])
        return hashlib.sha256(text.encode()).hexdigest()


class Subset:
    """Some rows of a set, in a given order.

    Attributes:
        dropped: 0. The whole set counts what it left out.
    """

    dropped = 0

    def __init__(self, whole: Rows, indices: np.ndarray) -> None:
        """Select rows. indices: int64 [rows]."""
        self.whole, self.indices = whole, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Row:
        return self.whole[int(self.indices[index])]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64 [rows]."""
        return self.whole.lengths[self.indices]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 hex digest of the set's fingerprint and the indices."""
        return hashlib.sha256(self.whole.fingerprint.encode() + self.indices.astype(np.int64).tobytes()).hexdigest()


def split_rows(rows: Rows, held_out: int, seed: int, name: str, whole: int = 0) -> tuple[Rows, Rows]:
    """Set `held_out` rows aside: (training rows, held-out rows), chosen by `seed`, both in their original order.

    Raises:
        UserError: nothing would be left to train on. `name` is the source in the message, and `held_out` its share of
            `whole` examples of all sources. 0: it is the only source.
    """
    if not held_out:
        return rows, Subset(rows, np.empty(0, np.int64))
    if held_out >= len(rows):
        raise cannot_hold_out(held_out, len(rows), f"blocks of text of {name}", whole)
    chosen = np.zeros(len(rows), bool)
    chosen[np.random.default_rng(seed).permutation(len(rows))[:held_out]] = True
    return Subset(rows, np.flatnonzero(~chosen)), Subset(rows, np.flatnonzero(chosen))
