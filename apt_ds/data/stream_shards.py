"""The shards of a stream: files, addresses and shards of hub data sets, each read on from any position.

A position is a JSON value. Its first number counts the records of the shard before it, whoever reads them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from apt_ds.config.errors import UserError
from apt_ds.data.column_files import located_rows, one_line_errors, record_batches
from apt_ds.data.json_files import Located, record_of_line
from apt_ds.data.readers import read_file
from apt_ds.data.source_kind import LAST_PIECE, TEXT
from apt_ds.data.text import Mender, check_pointer
from apt_ds.data.values import kind

Position = list[Any]
Wanted = Callable[[int], bool]  # whether this process reads the record of a number

_TEXT_PIECE = 1 << 14  # bytes of a text file that count as one record
_MARK = b"\xef\xbb\xbf"


class Shard(ABC):
    """A part of a stream that is read from its start to its end.

    Attributes:
        label: the name of the shard, for messages.
        position: that of the first record that `records` has not yielded.
        retried: errors after which reading goes on from `position`.
    """

    retried: tuple[type[Exception], ...] = ()

    def __init__(self, label: str) -> None:
        self.label = label
        self.position: Position = []

    @abstractmethod
    def records(self, position: Position, wanted: Wanted) -> Iterator[Located]:
        """The wanted records from a position on. []: from the start.

        Raises:
            UserError: a record cannot be read.
        """

    def current(self) -> Position:
        """`position`, as a checkpoint can keep it."""
        return list(self.position)

    @property
    def number(self) -> int:
        """Records of the shard before the position."""
        return int(self.position[0]) if self.position else 0


class LineShard(Shard):
    """JSON lines. A position is the number of records and lines before it, and a place in bytes."""

    def lines(self, offset: int) -> Iterator[bytes]:
        """The lines from a place in bytes on."""
        path = Path(self.label)
        check_pointer(path)
        try:
            with path.open("rb") as file:
                file.seek(offset)
                yield from file
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error

    def records(self, position: Position, wanted: Wanted) -> Iterator[Located]:
        """The wanted records. Lines of other records are not parsed."""
        number, line, offset = self.position = position or [0, 0, 0]
        mender = Mender(self.label)
        for raw in self.lines(offset):
            line, offset = line + 1, offset + len(raw)
            content = raw.removeprefix(_MARK)
            if not content.strip():
                continue
            number += 1
            self.position = [number, line, offset]
            if wanted(number - 1):
                where = f"{self.label}, line {line}"
                yield where, record_of_line(self._text(content, where), where, mender, number)
        mender.warn()

    @staticmethod
    def _text(content: bytes, where: str) -> str:
        try:
            return content.decode().removesuffix("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: not UTF-8 text (byte {error.start} of it). Save it as UTF-8") from error


class ColumnShard(Shard):
    """A Parquet or Arrow file. A position is a number of rows."""

    def records(self, position: Position, wanted: Wanted) -> Iterator[Located]:
        """The wanted rows. Others are not decoded."""
        path, first = Path(self.label), position[0] if position else 0
        self.position = [first]
        with one_line_errors(path):
            groups, start = self._groups_from(path, first)
        for batch in record_batches(path, groups):
            chosen = [i for i in range(max(0, first - start), batch.num_rows) if wanted(start + i)]
            for i, located in zip(chosen, located_rows(path, batch, start, chosen), strict=True):
                self.position = [start + i + 1]
                yield located
            start += batch.num_rows

    @staticmethod
    def _groups_from(path: Path, first: int) -> tuple[list[int] | None, int]:
        """The row groups of a Parquet file from a row on, and the number of the first row of these."""
        if path.suffix.lower() != ".parquet" or not first:
            return None, 0
        from pyarrow import parquet

        start, metadata = 0, parquet.read_metadata(path)
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            if start + rows > first:
                return list(range(group, metadata.num_row_groups)), start
            start += rows
        return [], start


class FileShard(Shard):
    """A file of another format. A position is a number of records, which reading on passes over."""

    def records(self, position: Position, wanted: Wanted) -> Iterator[Located]:
        """The wanted records."""
        first = position[0] if position else 0
        self.position = [first]
        for number, located in enumerate(islice(read_file(Path(self.label)), first, None), start=first):
            self.position = [number + 1]
            if wanted(number):
                yield located


class TextShard(Shard):
    """A text file in pieces of about 16 KiB, each a record of `TEXT` and `LAST_PIECE`."""

    def records(self, position: Position, wanted: Wanted) -> Iterator[Located]:
        """The wanted pieces. A position is a number of pieces and a place in bytes."""
        path = Path(self.label)
        number, offset = self.position = position or [0, 0]
        check_pointer(path)
        try:
            with path.open("rb") as file:
                file.seek(offset)
                waiting = b""
                while True:
                    block = file.read(_TEXT_PIECE)
                    waiting += block
                    end = _border(waiting) if len(block) == _TEXT_PIECE else len(waiting)
                    last = end == len(waiting) and not file.peek(1)
                    piece, waiting = waiting[:end], waiting[end:]
                    if not piece:
                        return
                    number, offset = number + 1, offset + len(piece)
                    self.position = [number, offset]
                    if wanted(number - 1):
                        text = self._text(piece, offset - len(piece))
                        yield f"{path}, piece {number}", {TEXT: text, LAST_PIECE: last}
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error

    def _text(self, piece: bytes, offset: int) -> str:
        try:
            text = piece.removeprefix(_MARK).decode() if offset == 0 else piece.decode()
        except UnicodeDecodeError as error:
            mark = len(_MARK) if offset == 0 and piece.startswith(_MARK) else 0
            place = offset + mark + error.start
            raise UserError(f"{self.label} is not UTF-8 text (byte {place}). Save it as UTF-8") from error
        return text.replace("\r\n", "\n").replace("\r", "\n")


def _border(block: bytes) -> int:
    """Where to cut a block of text: after its last line, else before its last word, else before its last character."""
    if (end := block.rfind(b"\n") + 1) or (end := block.rfind(b" ")) > 0:
        return end
    end = len(block) - 1
    while end > 0 and block[end] & 0xC0 == 0x80:  # the rest of a character
        end -= 1
    return end or len(block)


class HubShard(Shard):
    """A shard of a hub data set that is read while it is downloaded. A position holds the data set's own state."""

    retried = (Exception,)  # the hub client has no common error class

    def __init__(self, label: str, make: Callable[[], Any]) -> None:
        """make: makes the shard, an `IterableDataset`."""
        super().__init__(label)
        self.make = make
        self._dataset: Any = None

    def records(self, position: Position, wanted: Wanted) -> Iterator[Located]:
        """The wanted records."""
        number, state = self.position = position or [0, None]
        self._dataset = self.make()
        if state is not None:
            self._dataset.load_state_dict(state)
        for record in self._dataset:
            number += 1
            self.position = [number, None]
            if wanted(number - 1):
                yield f"{self.label}, record {number}", record

    def current(self) -> Position:
        """The position, with the state that the data set has now."""
        if not self.number or self.position[1] is not None:
            return list(self.position)
        return [self.number, self._dataset.state_dict()]


def shard_of_file(path: Path) -> Shard:
    """The shard that a file is."""
    ending = path.suffix.lower()
    kinds: dict[str, type[Shard]] = {".jsonl": LineShard, ".parquet": ColumnShard, ".arrow": ColumnShard}
    kinds[".txt"] = TextShard
    return kinds.get(ending, FileShard)(str(path))


def columns_of_record(record: Any, where: str) -> set[str]:
    """The columns of a record. Raises UserError where it is no record."""
    if not isinstance(record, dict):
        raise UserError(f"{where}: a record must be an object, not {kind(record)}")
    return set(record)
