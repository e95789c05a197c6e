"""Data sets that are read and tokenized: small ones in memory, large ones in memory-mapped Arrow files of a cache.

A large data set passes through memory in parts. Its examples go to one Arrow file, and `datasets.Dataset.map` makes
their rows with several processes. Later starts open the files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from apt_ds.data import cache
from apt_ds.data.arrow_files import EXAMPLES, ExampleFile, rows_of, write_examples, write_rows
from apt_ds.data.cache import CacheSettings, DamagedError
from apt_ds.data.readers import Source
from apt_ds.data.recipe import Examples, Recipe, RowMaker, collection_paused
from apt_ds.data.tokenized import Column, Row, TokenizedSet, columns_of, fingerprint_of

E = TypeVar("E")
C = TypeVar("C")

SMALL = 5000  # examples that are read into memory, since a cache would take longer
SMALL_BYTES = 2 << 20  # of files that cannot hold more examples than that
_BATCH = 1000

log = logging.getLogger(__name__)


@dataclass
class Prepared(Generic[E]):
    """A data set: its examples, and a row for each.

    Attributes:
        examples: all examples.
        columns: the rows' columns.
        trained: bool [examples], whether training sees the row.
        name: the name of the source.
        folder: where the files are. None in memory.
        temporary: the folder is to be removed once all processes of the node have opened it.
        lengths: tokens of each row, int32 [examples]. None if unknown.
    """

    examples: Sequence[E]
    columns: dict[str, Column]
    trained: np.ndarray
    name: str
    folder: Path | None = None
    temporary: bool = False
    lengths: np.ndarray | None = None

    def tokenized(self, numbers: np.ndarray | None = None, fingerprint: str = "") -> TokenizedSet:
        """The rows that training sees, of some examples.

        Args:
            numbers: the examples, in increasing order. None: all.
            fingerprint: that of the rows where it is known.
        """
        numbers = np.arange(len(self.examples)) if numbers is None else numbers
        # half the memory of int64, which a million rows feel
        kept = numbers[self.trained[numbers]].astype(np.int32 if len(self.examples) < 1 << 31 else np.int64)
        lengths = None if self.lengths is None else self.lengths[kept]
        fingerprint = fingerprint or self._fingerprint(kept)
        return TokenizedSet(self.columns, len(numbers) - len(kept), fingerprint, kept, lengths)

    def _fingerprint(self, kept: np.ndarray) -> str:
        """That of the rows `kept`, remembered beside the files."""
        if self.folder is None or self.temporary:
            return fingerprint_of(self.columns, kept)
        file = self.folder / f"fingerprint-{hashlib.sha256(kept.tobytes()).hexdigest()[:16]}"
        if file.is_file() and len(known := file.read_text("utf-8", errors="replace")) == 64:
            return known
        # mapped apart: its pages do not stay in the memory of this process
        fingerprint = fingerprint_of(rows_of(self.folder), kept)
        cache.remember(file, fingerprint)
        return fingerprint

    def to_bytes(self, recipe: Recipe[E]) -> bytes:
        """What the other processes of the node need for `from_bytes`."""
        if self.folder is not None:
            facts = {"name": self.name, "folder": str(self.folder), "temporary": self.temporary}
            return json.dumps(facts).encode()
        head = {"name": self.name, "examples": [recipe.dump(example) for example in self.examples]}
        rows = TokenizedSet(self.columns, 0, "").to_bytes()
        return b"\n".join([json.dumps(head).encode(), self.trained.tobytes().hex().encode(), rows])

    @classmethod
    def from_bytes(cls, content: bytes, recipe: Recipe[E]) -> Prepared[E]:
        """What `to_bytes` gave."""
        head, _, rest = content.partition(b"\n")
        facts = json.loads(head)
        if "folder" in facts:
            return opened(Path(facts["folder"]), recipe, facts["name"], facts["temporary"])
        flags, _, rows = rest.partition(b"\n")
        examples = [recipe.load(content, where) for content, where in facts["examples"]]
        trained = np.frombuffer(bytes.fromhex(flags.decode()), bool)
        return cls(examples, TokenizedSet.from_bytes(rows).columns, trained, facts["name"])

    def remove_temporary(self) -> None:
        """Remove a temporary folder, whose files stay mapped."""
        if self.temporary and self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def prepare(source: Source, recipe: Recipe[E], settings: CacheSettings) -> Prepared[E]:
    """Read and tokenize a data set, or open it in the cache.

    Raises:
        UserError: a record cannot be used, or the disk is full.
    """
    if 0 < source.bytes() <= SMALL_BYTES:
        return _in_memory(list(recipe.read(source.records(), source.name)), recipe, source.name)
    root, key = settings.root(), cache.key_of(source.identity(), recipe.options)
    folder = root / key
    again = settings.overwrite or folder.is_dir()
    if not settings.overwrite and (data := cached(folder, lambda: opened(folder, recipe, source.name))) is not None:
        return data
    with collected_warnings() as notices:
        examples = recipe.read(source.records(), source.name)
        head = list(islice(examples, SMALL + 1))
        if len(head) <= SMALL:
            return _in_memory(head, recipe, source.name)

        def fill(partial: Path) -> dict[str, Any]:
            return _fill(partial, chain(head, examples), recipe, source, settings.processes) | {"notices": notices}

        folder = cache.write_entry(root, key, fill, again)
    return opened(folder, recipe, source.name, cache.is_temporary(folder, root))


def opened(folder: Path, recipe: Recipe[E], name: str, temporary: bool = False) -> Prepared[E]:
    """The data set in a folder of the cache.

    Raises:
        DamagedError: its files are not what was written.
    """
    meta = cache.read_meta(folder)
    try:
        examples = Examples(ExampleFile(folder / EXAMPLES), recipe.load, name)
        columns = rows_of(folder)
        trained, lengths = np.load(folder / "trained.npy"), np.load(folder / "lengths.npy")
    except (OSError, ValueError, LookupError) as error:
        raise DamagedError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    if {len(examples), len(trained), len(lengths), *map(len, columns.values())} != {meta["rows"]}:
        raise DamagedError("its files have different numbers of rows")
    return Prepared(examples, columns, trained, name, folder, temporary, lengths)


def _in_memory(examples: list[E], recipe: Recipe[E], name: str) -> Prepared[E]:
    rows: list[Row] = []
    with collection_paused():
        for start in range(0, len(examples), _BATCH):
            rows += recipe.encode(examples[start : start + _BATCH])
    trained = np.array([recipe.is_trained(row) for row in rows], bool)
    return Prepared(examples, columns_of(rows), trained, name)


def _fill(folder: Path, examples: Iterable[E], recipe: Recipe[E], source: Source, processes: int) -> dict[str, Any]:
    """Write the files of a data set. Returns facts about it."""
    write = json.JSONEncoder(ensure_ascii=False).encode

    def dumped() -> Iterator[tuple[str, str]]:
        for example in examples:
            content, where = recipe.dump(example)
            yield write(content), source.place_of(where)

    # in the processes that tokenize too
    with collection_paused():
        count = write_examples(folder / EXAMPLES, dumped())
        maker = RowMaker(recipe.encode, recipe.load, recipe.is_trained, source.name)
        lengths, trained = write_rows(folder, maker, processes or default_processes(count))
    np.save(folder / "lengths.npy", lengths.astype(np.int32))
    np.save(folder / "trained.npy", trained)
    return {"rows": count, "source": source.name}


def default_processes(rows: int) -> int:
    """Processes that tokenize `rows` examples: one for each processor, and fewer where each would have little to do."""
    return max(1, min(len(os.sched_getaffinity(0)), rows // SMALL))


def cached(folder: Path, read: Callable[[], C]) -> C | None:
    """What `read` reads of a folder of the cache. None where the folder is absent or damaged, and to be made again."""
    if not folder.is_dir():
        return None
    try:
        content = read()
    except DamagedError as error:
        log.warning("the cached data %s is damaged (%s): it is made again", folder, error)
        return None
    _repeat_notices(folder)
    return content


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collects the warnings of the readers, which a later start repeats."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    collector, logger = Collector(logging.WARNING), logging.getLogger("apt_ds.data")
    level, propagates = logger.level, logger.propagate
    if not logger.isEnabledFor(logging.WARNING):
        # a process that shows no warnings, as ranks but the first, keeps them for those that read its cache
        logger.propagate = False
        logger.setLevel(logging.WARNING)
    logger.addHandler(collector)
    try:
        yield messages
    finally:
        logger.removeHandler(collector)
        logger.setLevel(level)
        logger.propagate = propagates


def _repeat_notices(folder: Path) -> None:
    """Warn of what the readers warned of when a folder of the cache was made."""
    for message in json.loads((folder / cache.META).read_text("utf-8")).get("notices", []):
        log.warning("%s", message)
