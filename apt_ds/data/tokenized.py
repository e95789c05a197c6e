"""Tokenized examples: rows of named columns, in memory or in memory-mapped Arrow files.

The columns: `input_ids`; `token_type_ids` where the tokenizer makes them; `labels`, one per token of what is
generated (-100 untrained); `targets`, one or two numbers of the example as a whole: the index of its class, its
score, or the first and last token of its answer.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Row = dict[str, list[int] | list[float]]

IGNORED = -100  # the label cross-entropy skips


class Column:
    """Lists of numbers, one per row: chunks of values, row after row.

    Args:
        chunks: Of each chunk the borders of its rows, integers [rows + 1], and its values, of any length. The values
            may lie in a mapped file.
    """

    def __init__(self, chunks: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        self.chunks = [(borders, values) for borders, values in chunks if len(borders) > 1]
        self.starts = np.cumsum([0, *(len(borders) - 1 for borders, _ in self.chunks)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, row: int) -> np.ndarray:
        """The values of a row."""
        chunk = int(np.searchsorted(self.starts, row, side="right")) - 1
        borders, values = self.chunks[chunk]
        place = row - int(self.starts[chunk])
        return values[borders[place] : borders[place + 1]]

    @property
    def floating(self) -> bool:
        """Whether the column holds fractions."""
        return any(values.dtype.kind == "f" for _, values in self.chunks)

    def lengths(self) -> np.ndarray:
        """Values of each row, int64 [rows]."""
        parts = [np.diff(borders).astype(np.int64) for borders, _ in self.chunks]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def values_of(self, kept: np.ndarray) -> Iterator[np.ndarray]:
        """The values of the rows for which `kept`, bool [rows], is true, chunk by chunk: int64 or float32."""
        dtype = np.float32 if self.floating else np.int64
        for (borders, values), start in zip(self.chunks, self.starts[:-1], strict=True):
            chosen = kept[start : start + len(borders) - 1]
            part = values[borders[0] : borders[-1]]
            if not chosen.all():
                part = part[np.repeat(chosen, np.diff(borders))]
            yield part.astype(dtype)


class TokenizedSet:
    """Rows with the same columns, ready for `collate`. `of` makes one.

    A column holds integers (int64) or fractions (float32).

    Attributes:
        columns: All rows that there are.
        kept: The numbers of those that belong to the set, in increasing order. None: all.
        dropped: The examples that training on them left out.
        fingerprint: The sha256 hex digest of all columns of the set's rows in order.
        lengths: Tokens of each row, int64 [rows], or int32 of a mapped set.
    """

    def __init__(
        self,
        columns: Mapping[str, Column],
        dropped: int,
        fingerprint: str,
        kept: np.ndarray | None = None,
        lengths: np.ndarray | None = None,
    ) -> None:
        self.columns, self.dropped, self.fingerprint, self.kept = dict(columns), dropped, fingerprint, kept
        if lengths is None:
            lengths = self.columns["input_ids"].lengths() if "input_ids" in self.columns else np.zeros(0, np.int64)
            lengths = lengths if kept is None else lengths[kept]
        self.lengths = lengths
        self._size = len(kept) if kept is not None else len(next(iter(self.columns.values()), ()))

    @classmethod
    def of(cls, rows: Sequence[Row], dropped: int = 0) -> TokenizedSet:
        """The set of these rows, fractions rounded to float32 so that all processes hold the same ones."""
        columns = columns_of(rows)
        return cls(columns, dropped, fingerprint_of(columns))

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Row:
        if not -self._size <= index < self._size:
            raise IndexError(index)
        row = index % self._size if self.kept is None else int(self.kept[index])
        return {name: column[row].tolist() for name, column in self.columns.items()}

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(self._size))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenizedSet):
            return NotImplemented
        return (self.fingerprint, self.dropped, self._size) == (other.fingerprint, other.dropped, other._size)

    __hash__ = None  # type: ignore[assignment]

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows at once, for small sets."""
        return tuple(self)

    def to_bytes(self) -> bytes:
        """The set as `from_bytes` takes it. All its rows are copied."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {"dropped": np.array(self.dropped), "fingerprint": np.array(self.fingerprint)}
        for name, (values, lengths) in _flat(self.columns, self.kept).items():
            arrays |= {f"values.{name}": values, f"lengths.{name}": lengths}
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> TokenizedSet:
        """What `to_bytes` gave."""
        with np.load(io.BytesIO(content)) as archive:
            names = [key.removeprefix("values.") for key in archive.files if key.startswith("values.")]
            columns = {name: column_of(archive[f"values.{name}"], archive[f"lengths.{name}"]) for name in names}
            return cls(columns, int(archive["dropped"]), str(archive["fingerprint"]))


def column_of(values: np.ndarray, lengths: np.ndarray) -> Column:
    """A column of one chunk: all values, row after row, and how many each row has."""
    return Column([(np.concatenate([np.zeros(1, np.int64), lengths.cumsum()]), values)])


def columns_of(rows: Sequence[Row]) -> dict[str, Column]:
    """The columns of rows in memory."""
    assert all(row.keys() == rows[0].keys() for row in rows)
    columns = {}
    for name in rows[0] if rows else ():
        flat = [value for row in rows for value in row[name]]
        dtype = np.float32 if any(isinstance(value, float) for value in flat) else np.int64
        columns[name] = column_of(np.array(flat, dtype), np.array([len(row[name]) for row in rows], np.int64))
    return columns


def fingerprint_of(columns: Mapping[str, Column], kept: np.ndarray | None = None) -> str:
    """The sha256 hex digest of the columns of rows: all, or those of the numbers `kept`, in increasing order."""
    digest = hashlib.sha256()
    for name, column in sorted(columns.items()):
        chosen, lengths = _chosen(column, kept)
        digest.update(f"{name} {'float32' if column.floating else 'int64'} {len(lengths)};".encode())
        digest.update(lengths.tobytes())
        for values in column.values_of(chosen):
            digest.update(values.tobytes())
    return digest.hexdigest()


def _chosen(column: Column, kept: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are chosen, bool [rows], and the lengths of those."""
    lengths = column.lengths()
    if kept is None:
        return np.ones(len(column), bool), lengths
    chosen = np.zeros(len(column), bool)
    chosen[kept] = True
    return chosen, lengths[chosen]


def _flat(columns: Mapping[str, Column], kept: np.ndarray | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each column all chosen values, row after row, and how many each row has."""
    flat = {}
    for name, column in columns.items():
        chosen, lengths = _chosen(column, kept)
        parts = list(column.values_of(chosen))
        empty = np.zeros(0, np.float32 if column.floating else np.int64)
        flat[name] = np.concatenate([empty, *parts]), lengths
    return flat
