"""Files of records, one format each, read a few records at a time: JSON, JSON lines, TSV, CSV, Parquet, Arrow.

TSV is read as GLUE writes it: a quote is a character like any other. A reader yields records with their places. It
keeps no more than a part of its file in memory, except of a JSON file that is an object with its records under 'data'.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from apt_ds.config.errors import UserError
from apt_ds.data.text import Mender, check_pointer, lines_of, may_hold_surrogates, read_text
from apt_ds.data.values import leave_out

Located = tuple[str, Any]  # place, record

_BLOCK = 1 << 20  # characters of a JSON list that are read at once
_BATCH = 1000  # rows of a table that are read at once
_BLANKS = " \t\n\r"


def loads(text: str) -> Any:
    """`json.loads`, whose every failure is a JSONDecodeError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
        raise json.JSONDecodeError(str(error).split(":")[0], text, 0) from error


def read_json(path: Path) -> Iterator[Located]:
    """The records of a JSON file: one list, or an object with it under 'data'."""
    mender = Mender(str(path))
    for number, record in enumerate(_elements(path, mender), start=1):
        yield f"{path}, record {number}", record
    mender.warn()


def _elements(path: Path, mender: Mender) -> Iterator[Any]:
    """The elements of a list, decoded block by block. Whatever is no such list is read whole, which finds its error."""
    buffer, number, separator = _Buffer(path), 0, ","
    try:
        if buffer.character() != "[":
            raise ValueError
        buffer.place += 1
        if buffer.character() == "]":
            buffer.place, separator = buffer.place + 1, "]"
        while separator == ",":
            buffer.character()
            record, number = buffer.value(), number + 1
            yield mender.mend(record, f"{path}, record {number}") if buffer.suspect else record
            separator = buffer.character()
            buffer.place += 1
        if separator != "]" or buffer.character():
            raise ValueError
    except (ValueError, RecursionError):
        yield from _whole(path, number, mender)


class _Buffer:
    """A part of a JSON file: text that is not decoded yet begins at `place`. suspect: it may hold surrogates."""

    def __init__(self, path: Path) -> None:
        self.blocks = _blocks(path)
        self.decoder = json.JSONDecoder()
        self.text, self.place, self.ended, self.suspect = "", 0, False, False

    def _extend(self) -> None:
        """Read on: more at once where an element is long."""
        rest = self.text[self.place :]
        count = 1 + len(rest) // _BLOCK
        blocks = [block for _, block in zip(range(count), self.blocks, strict=False)]
        self.text, self.place, self.ended = rest + "".join(blocks), 0, len(blocks) < count
        self.suspect = may_hold_surrogates(self.text)

    def character(self) -> str:
        """The next character that is not blank, left in place; '' at the end."""
        while True:
            while self.place < len(self.text):
                if self.text[self.place] not in _BLANKS:
                    return self.text[self.place]
                self.place += 1
            if self.ended:
                return ""
            self._extend()

    def value(self) -> Any:
        """The next value."""
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.place)
            except (ValueError, RecursionError):
                if self.ended:
                    raise
            else:
                if end < len(self.text) or self.ended:
                    self.place = end
                    return value
            self._extend()


def _blocks(path: Path) -> Iterator[str]:
    """The text of a file in blocks."""
    check_pointer(path)
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                yield decoder.decode(block)
            yield decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        read_text(path)  # names the byte
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _whole(path: Path, done: int, mender: Mender) -> Iterator[Any]:
    """The records after the first `done`, of a file that is parsed at once."""
    text = read_text(path)
    if not text.strip():
        raise UserError(f"{path} is empty; it needs at least one record")
    try:
        content = loads(text)
    except json.JSONDecodeError as error:
        hint = "; name it .jsonl if it holds one record per line" if error.msg == "Extra data" else ""
        where = f"{path}, line {error.lineno}, column {error.colno}"
        raise UserError(f"{where}: not valid JSON ({error.msg}){hint}") from error
    records = content.get("data") if isinstance(content, dict) else content
    if not isinstance(records, list):
        raise UserError(f"{path} must hold a list of records, or an object with such a list under 'data'")
    suspect = may_hold_surrogates(text)
    for number, record in enumerate(records[done:], start=done + 1):
        yield mender.mend(record, f"{path}, record {number}") if suspect else record


def read_jsonl(path: Path) -> Iterator[Located]:
    """The records of a file with one JSON record on each line."""
    mender = Mender(str(path))
    empty = True
    for number, line in lines_of(path):
        line = line.lstrip("\ufeff")  # of a file that was joined from several
        if not line.strip():
            continue
        empty = False
        where = f"{path}, line {number}"
        try:
            record = loads(line)
        except json.JSONDecodeError as error:
            problem = f"not valid JSON ({error.msg}); put one record on one line"
            raise UserError(f"{where}, column {error.colno}: {problem}") from error
        yield where, mender.mend(record, where) if may_hold_surrogates(line) else record
    if empty:
        raise UserError(f"{path} is empty; it needs at least one record")
    mender.warn()


def read_table(path: Path, headerless: Sequence[str] = ()) -> Iterator[Located]:
    """The records of a TSV or CSV file. headerless: columns of one that has no header, see `readers.read_file`."""
    lines = _tsv(path) if path.suffix.lower() == ".tsv" else _csv(path)
    first = next(lines, None)
    if first is None:
        raise UserError(f"{path} is empty; it needs at least one record")
    header, has_header = header_of(path, first[1], headerless)
    torn: list[str] = []
    total = 0
    for line, cells in lines if has_header else chain([first], lines):
        total += 1
        where = f"{path}, line {line}"
        if len(cells) == len(header):
            yield where, dict(zip(header, cells, strict=True))
        else:
            torn.append(where)
    leave_out(torn, total, f"not the {len(header)} columns of the first line", str(path))


def header_of(path: Path, cells: Sequence[str], headerless: Sequence[str] = ()) -> tuple[list[str], bool]:
    """The names of the columns, and whether the first line `cells` has them."""
    header = [cell.strip() for cell in cells]
    if len(header) == len(headerless) and not set(header) & set(headerless):
        return list(headerless), False
    if len(set(header)) < len(header):
        raise UserError(f"{path}, line 1: two columns have the same name; the first line must name each column")
    return header, True


def _tsv(path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in lines_of(path):
        if line.strip():
            yield number, line.rstrip("\r").split("\t")


def _csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    check_pointer(path)
    reader = None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                if not is_blank(cells):
                    yield reader.line_num, cells
    except csv.Error as error:
        line = reader.line_num if reader else 1
        raise UserError(f"{path}, line {line}: not valid CSV ({error})") from error
    except UnicodeDecodeError:
        read_text(path)  # names the byte
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def is_blank(cells: Sequence[str]) -> bool:
    """Whether the line of a CSV file holds nothing, or nothing but blanks."""
    return not cells or (len(cells) == 1 and bool(cells[0]) and not cells[0].strip())


def read_columns(path: Path) -> Iterator[Located]:
    """The records of a Parquet or Arrow file. A place is the file and the row, counted from 1."""
    number = 0
    try:
        for batch in _batches(path):
            for record in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", record
    except UserError:
        raise
    except (OSError, ValueError) as error:  # pyarrow's own errors are both
        raise UserError(_unreadable(path, error)) from error
    if not number:
        raise UserError(f"{path} is empty; it needs at least one record")


def _unreadable(path: Path, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return f"{path} is not a whole {path.suffix[1:].title()} file ({reason}); copy or make it again"


def _batches(path: Path) -> Iterator[Any]:
    """Record batches of pyarrow."""
    import pyarrow as pa

    check_pointer(path)
    if path.suffix.lower() == ".parquet":
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(_BATCH)
        return
    with pa.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(source)
            batches: Iterator[Any] = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            source.seek(0)
            batches = iter(pa.ipc.open_stream(source))
        for batch in batches:
            for start in range(0, batch.num_rows, _BATCH):
                yield batch.slice(start, _BATCH)


def column_names(path: Path) -> tuple[str, ...] | None:
    """The columns of a table file; None for a format whose records each have their own."""
    ending = path.suffix.lower()
    if ending in (".tsv", ".csv"):
        first = next(_tsv(path) if ending == ".tsv" else _csv(path), None)
        return tuple(header_of(path, first[1])[0]) if first else None
    if ending not in (".parquet", ".arrow"):
        return None
    try:
        import pyarrow as pa
        from pyarrow import parquet

        if ending == ".parquet":
            return tuple(parquet.read_schema(path).names)
        with pa.memory_map(str(path)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            return tuple((pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)).schema.names)
    except (OSError, ValueError) as error:
        raise UserError(_unreadable(path, error)) from error


READERS: dict[str, Callable[[Path], Iterator[Located]]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".tsv": read_table,
    ".csv": read_table,
    ".parquet": read_columns,
    ".arrow": read_columns,
}
