"""How the records of a task become rows: what a reader of data sets has to know of a task."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

from apt_ds.data.arrow_files import ExampleFile
from apt_ds.data.readers import Located
from apt_ds.data.tokenized import Row

E = TypeVar("E")


def always(_: Row) -> bool:
    """Every row is trained."""
    return True


@dataclass(frozen=True)
class Recipe(Generic[E]):
    """How the records of a task become rows.

    Attributes:
        read: the examples of records, one at a time. The second argument is the name of the source.
        encode: rows of examples, one each. It must survive pickling.
        dump: an example as JSON can write it, and its place.
        load: the example of what `dump` gave.
        options: what else decides the rows, as JSON can write it.
        is_trained: whether training sees a row.
    """

    read: Callable[[Iterable[Located], str], Iterator[E]]
    encode: Callable[[Sequence[E]], list[Row]]
    dump: Callable[[E], tuple[Any, str]]
    load: Callable[[Any, str], E]
    options: Mapping[str, Any]
    is_trained: Callable[[Row], bool] = always


class Examples(Sequence[E]):
    """The examples of an Arrow file, decoded when asked for."""

    def __init__(self, file: ExampleFile, load: Callable[[Any, str], E], name: str) -> None:
        self.file, self.load, self.name = file, load, name

    def __len__(self) -> int:
        return len(self.file)

    @overload
    def __getitem__(self, index: int) -> E: ...
    @overload
    def __getitem__(self, index: slice) -> list[E]: ...
    def __getitem__(self, index: int | slice) -> E | list[E]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        content, place = self.file[index % len(self)]
        return self.load(json.loads(content), self.name + place)


@dataclass
class RowMaker(Generic[E]):
    """Makes rows of the contents of an example file, in any process."""

    encode: Callable[[Sequence[E]], list[Row]]
    load: Callable[[Any, str], E]
    is_trained: Callable[[Row], bool]
    name: str

    def __call__(self, contents: Sequence[str], places: Sequence[str]) -> tuple[list[Row], list[bool]]:
        """The rows, and which of them training sees."""
        with collection_paused():
            pairs = zip(contents, places, strict=True)
            examples = [self.load(json.loads(content), self.name + place) for content, place in pairs]
            rows = self.encode(examples)
            return rows, [self.is_trained(row) for row in rows]


@contextmanager
def collection_paused() -> Iterator[None]:
    """Without cyclic garbage collection: rows are no cycles, and looking for cycles takes half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
