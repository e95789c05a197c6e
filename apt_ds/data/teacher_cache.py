"""What a teacher says of the trained tokens of some rows, in files that are read by mapping.

Tokens come row after row, rows by their number. For each trained token the files have its k likeliest tokens (int32)
and their log-probabilities (fp16): 6 k bytes, 384 for k = 64. A folder is whole or absent. `meta.json` has the facts
that the content depends on, and checksums.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from apt_ds.config.errors import UserError
from apt_ds.data.cache import META, discard, moved, read_meta, write_meta

FORMAT = 1
ROWS, COUNTS, IDS, LOG_PROBABILITIES = "rows.npy", "counts.npy", "ids.int32", "log_probabilities.fp16"
ITEM = 6  # bytes of a token's number and its log-probability
LABELS = {
    "model": "another base model",
    "config": "another configuration of the base model",
    "data": "other training data",
    "rows": "other rows of the training data (another number of steps, batch size or seed)",
    "dtype": "another dtype of the base model",
    "temperature": "another --distill_temperature",
    "top_k": "another --distill_top_k",
}
Facts = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """Where the tokens of each row are.

    Attributes:
        rows: numbers of the rows, increasing, int64 [rows].
        counts: trained tokens of each, int64 [rows].
        k: tokens known for each trained token.
    """

    rows: np.ndarray
    counts: np.ndarray
    k: int

    @cached_property
    def starts(self) -> np.ndarray:
        """The first token of each row, and the number of all tokens, int64 [rows + 1]."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.counts)])

    @property
    def tokens(self) -> int:
        """Trained tokens of all rows."""
        return int(self.starts[-1])

    @property
    def bytes(self) -> int:
        """Bytes of the files."""
        return self.tokens * self.k * ITEM + (self.rows.nbytes + self.counts.nbytes)


class CacheWriter:
    """Writes a folder. All of its room is taken at the start, so that the disk cannot fill up later."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        """Take the room.

        Raises:
            UserError: the disk has not enough room, or the folder cannot be made.
        """
        self.folder, self.layout = folder, layout
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            if (free := shutil.disk_usage(folder.parent).free) < layout.bytes:
                raise UserError(f"{_needs(layout, folder)}, and {free / 1e6:,.1f} MB are free. {_ADVICE}")
            self.partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
        except OSError as error:
            raise UserError(f"{_needs(layout, folder)}, which {_reason(error)}. {_ADVICE}") from error
        try:
            np.save(self.partial / ROWS, layout.rows)
            np.save(self.partial / COUNTS, layout.counts)
            self._ids = self._reserve(IDS, np.int32)
            self._log_probabilities = self._reserve(LOG_PROBABILITIES, np.float16)
        except OSError as error:
            self.discard()
            raise UserError(f"{_needs(layout, folder)}, which {_reason(error)}. {_ADVICE}") from error

    def _reserve(self, name: str, dtype: type[np.generic]) -> np.memmap[Any, Any]:
        path, shape = self.partial / name, (self.layout.tokens, self.layout.k)
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shape[0] * shape[1] * np.dtype(dtype).itemsize)
        return np.memmap(path, dtype, "r+", shape=shape)

    def write(self, places: Sequence[int], ids: np.ndarray, log_probabilities: np.ndarray) -> None:
        """Write the tokens of some rows.

        Args:
            places: places of the rows in the layout.
            ids: int32 [tokens, k], of these rows one after the other.
            log_probabilities: fp16 [tokens, k].
        """
        start = 0
        for place in places:
            span = slice(self.layout.starts[place], self.layout.starts[place + 1])
            stop = start + int(self.layout.counts[place])
            self._ids[span] = ids[start:stop]
            self._log_probabilities[span] = log_probabilities[start:stop]
            start = stop
        assert start == len(ids)

    def finish(self, facts: Facts, seconds: float) -> None:
        """Give the folder its name.

        Args:
            facts: what the content depends on, by the keys of `LABELS`.
            seconds: the time that the content took.
        """
        self._ids.flush()
        self._log_probabilities.flush()
        tokens, k = self.layout.tokens, self.layout.k
        write_meta(self.partial, {"format": FORMAT, "facts": facts, "tokens": tokens, "k": k, "seconds": seconds})
        moved(self.partial, self.folder)

    def discard(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self.partial, ignore_errors=True)


class TeacherCache:
    """A whole folder, open for reading.

    Attributes:
        folder: the folder.
        layout: where the tokens of each row are.
        seconds: the time that making it took.
        digest: a hash of facts and checksums, equal for equal content.
    """

    def __init__(self, folder: Path) -> None:
        """Open a folder that `usable` has passed."""
        meta = json.loads((folder / META).read_text("utf-8"))
        self.folder, self.seconds = folder, float(meta["seconds"])
        self.layout = Layout(np.load(folder / ROWS), np.load(folder / COUNTS), meta["k"])
        shape = (self.layout.tokens, self.layout.k)
        self._ids = np.memmap(folder / IDS, np.int32, "r", shape=shape)
        self._log_probabilities = np.memmap(folder / LOG_PROBABILITIES, np.float16, "r", shape=shape)
        text = json.dumps([meta["facts"], meta["files"]], sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]

    def tokens_of(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """What the teacher says of the trained tokens of some rows, one row after the other.

        Args:
            rows: numbers of rows that the cache has.

        Returns:
            int32 [tokens, k] and fp16 [tokens, k], copies.
        """
        places = np.searchsorted(self.layout.rows, rows)
        spans = [slice(self.layout.starts[place], self.layout.starts[place + 1]) for place in places]
        ids = np.concatenate([self._ids[span] for span in spans])
        return ids, np.concatenate([self._log_probabilities[span] for span in spans])


def name_of(facts: Facts) -> str:
    """The name of the folder for some facts."""
    return f"teacher-{hashlib.sha256(json.dumps([FORMAT, facts], sort_keys=True).encode()).hexdigest()[:32]}"


def usable(folder: Path, facts: Facts) -> bool:
    """Whether a folder is whole and was made from these facts. False where there is no folder, or an empty one.

    Raises:
        DamagedError: a file is missing or is not what was written.
        UserError: the folder holds something else, or was made from other facts.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / META).is_file() or not (folder / ROWS).is_file():
        raise UserError(f"--teacher_cache {str(folder)!r} is not a cache of probabilities. Give a folder that is empty")
    meta = read_meta(folder)
    then = meta.get("facts", {}) if meta.get("format") == FORMAT else {}
    for name, label in LABELS.items():
        if then.get(name) != facts[name]:
            raise UserError(
                f"--teacher_cache {str(folder)!r} was made from {label}. Give another folder, or --overwrite_cache "
                "true to make it again"
            )
    return True


def refuse_other(folder: Path) -> None:
    """Raise UserError where something else is in the folder's place, which `CacheWriter.finish` could not replace."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"--teacher_cache {str(folder)!r} is not a cache of probabilities. Give a folder that is empty")


def remove(folder: Path) -> None:
    """Remove a folder, so that it can be made again. Only a folder of probabilities is removed."""
    if (folder / ROWS).is_file():
        discard(folder)


_ADVICE = "Free space there, give --teacher_cache on another disk, or a smaller --distill_top_k"


def _needs(layout: Layout, folder: Path) -> str:
    return (
        f"the dense model's probabilities of {layout.tokens:,} trained tokens need {layout.bytes / 1e6:,.1f} MB under "
        f"{folder.parent}"
    )


def _reason(error: OSError) -> str:
    return f"cannot be written ({error.strerror})"
