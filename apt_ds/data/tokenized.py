"""Tokenized examples: rows of named columns, and a set of them that travels between processes.

The columns: `input_ids`; `token_type_ids` where the tokenizer makes them; `labels`, one per token of what is
generated (-100 untrained); `targets`, one or two numbers of the example as a whole: the index of its class, its
score, or the first and last token of its answer.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

Row = dict[str, list[int] | list[float]]

IGNORED = -100  # the label cross-entropy skips


@dataclass(frozen=True)
class TokenizedSet:
    """Rows with the same columns, ready for `collate`; make one with `of`.

    A column holds integers (int64) or fractions (float32). `dropped` counts the examples that training on them
    left out; `fingerprint` is the sha256 hex digest of all columns of all rows in order.
    """

    rows: tuple[Row, ...]
    dropped: int
    fingerprint: str

    @classmethod
    def of(cls, rows: Sequence[Row], dropped: int = 0) -> TokenizedSet:
        """The set of these rows, fractions rounded to float32 so that all processes hold the same ones."""
        assert all(row.keys() == rows[0].keys() for row in rows)
        columns = _columns(rows)
        digest = hashlib.sha256()
        for name, (values, lengths) in sorted(columns.items()):
            digest.update(f"{name} {values.dtype} {len(rows)};".encode())
            digest.update(lengths.tobytes() + values.tobytes())
        return cls(_rows(columns), dropped, digest.hexdigest())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64 [rows]."""
        return np.array([len(row["input_ids"]) for row in self.rows], np.int64)

    def to_bytes(self) -> bytes:
        """The set as `from_bytes` takes it."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {"dropped": np.array(self.dropped), "fingerprint": np.array(self.fingerprint)}
        for name, (values, lengths) in _columns(self.rows).items():
            arrays |= {f"values.{name}": values, f"lengths.{name}": lengths}
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> TokenizedSet:
        """What `to_bytes` gave."""
        with np.load(io.BytesIO(content)) as archive:
            names = [key.removeprefix("values.") for key in archive.files if key.startswith("values.")]
            columns = {name: (archive[f"values.{name}"], archive[f"lengths.{name}"]) for name in names}
            return cls(_rows(columns), int(archive["dropped"]), str(archive["fingerprint"]))


def _columns(rows: Sequence[Row]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each column all values, row after row, and how many each row has."""
    columns = {}
    for name in rows[0] if rows else ():
        flat = [value for row in rows for value in row[name]]
        dtype = np.float32 if any(isinstance(value, float) for value in flat) else np.int64
        columns[name] = (np.array(flat, dtype), np.array([len(row[name]) for row in rows], np.int64))
    return columns


def _rows(columns: dict[str, tuple[np.ndarray, np.ndarray]]) -> tuple[Row, ...]:
    split = {
        name: [part.tolist() for part in np.split(values, lengths.cumsum()[:-1])]
        for name, (values, lengths) in columns.items()
    }
    return tuple(dict(zip(split, parts, strict=True)) for parts in zip(*split.values(), strict=True))
