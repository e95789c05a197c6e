"""JSON files of records, decoded a block or a line at a time."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from apt_ds.config.errors import UserError
from apt_ds.data.text import Mender, check_pointer, lines_of, may_hold_surrogates, mended, read_text

Located = tuple[str, Any]  # place, record

_BLOCK = 1 << 20  # characters of a JSON list that are read at once
_BLANKS = " \t\n\r"
_CHECKED = 1000  # first records of a file whose keys are checked. Checking all takes up to half of the time to read


def loads(text: str, decode: Callable[[str], Any] = json.loads) -> Any:
    """`json.loads`, whose every failure is a JSONDecodeError."""
    try:
        return decode(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
        raise json.JSONDecodeError(str(error).split(":")[0], text, 0) from error


class RepeatedKeyError(Exception):
    """An object has a key twice. The message says what is wrong."""


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    keys = [key for key, _ in pairs]
    key = next(key for key in keys if keys.count(key) > 1)
    raise RepeatedKeyError(f"the key '{mended(key)}' occurs twice in one object. Remove or rename one of them")


_PLAIN, _CHECKING = json.JSONDecoder(), json.JSONDecoder(object_pairs_hook=_unrepeated)


def decoder_of(number: int) -> json.JSONDecoder:
    """The decoder of a file's record `number`, counted from 1. It raises RepeatedKeyError in the first records."""
    return _CHECKING if number <= _CHECKED else _PLAIN


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
    except RepeatedKeyError as error:
        raise UserError(f"{path}, record {number + 1}: {error}") from error
    except (ValueError, RecursionError):
        yield from _whole(path, number, mender)


class _Buffer:
    """A part of a JSON file: text that is not decoded yet begins at `place`. suspect: it may hold surrogates."""

    def __init__(self, path: Path) -> None:
        self.blocks = _blocks(path)
        self.number = 0  # of the record that was read last
        self.text, self.place, self.ended, self.suspect = "", 0, False, False

    def _extend(self) -> None:
        """Read on: more at once where an element is long."""
        rest = self.text[self.place :]
        count = 1 + len(rest) // _BLOCK
        blocks = [block for _, block in zip(range(count), self.blocks, strict=False)]
        self.text, self.place, self.ended = rest + "".join(blocks), 0, len(blocks) < count
        self.suspect = may_hold_surrogates(self.text)

    def character(self) -> str:
        """The next character that is not blank, left in place. '' at the end."""
        while True:
            while self.place < len(self.text):
                if self.text[self.place] not in _BLANKS:
                    return self.text[self.place]
                self.place += 1
            if self.ended:
                return ""
            self._extend()

    def value(self) -> Any:
        """The next value. Raises RepeatedKeyError."""
        self.number += 1
        decoder = decoder_of(self.number)
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.place)
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
        raise UserError(f"{path} is empty. Give a file with at least one record")
    try:
        content = loads(text, (_CHECKING if len(text) <= _BLOCK else _PLAIN).decode)
    except RepeatedKeyError as error:
        raise UserError(f"{path}: {error}") from error
    except json.JSONDecodeError as error:
        hint = ". Name it .jsonl if it holds one record per line" if error.msg == "Extra data" else ""
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
    count = 0
    for number, line in lines_of(path):
        line = line.lstrip("\ufeff")  # of a file that was joined from several
        if not line.strip():
            continue
        count += 1
        where = f"{path}, line {number}"
        yield where, record_of_line(line, where, mender, count)
    if not count:
        raise UserError(f"{path} is empty. Give a file with at least one record")
    mender.warn()


def record_of_line(line: str, where: str, mender: Mender, number: int) -> Any:
    """The record on a line, the file's record `number`, counted from 1. Raises UserError with its place."""
    try:
        record = loads(line, decoder_of(number).decode)
    except RepeatedKeyError as error:
        raise UserError(f"{where}: {error}") from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and line[error.pos - 1] == "\r":
            raise UserError(f"{where}: lines end with CR. Save the file with LF line ends") from error
        problem = f"not valid JSON ({error.msg}). Put one record on one line"
        raise UserError(f"{where}, column {error.colno}: {problem}") from error
    return mender.mend(record, where) if may_hold_surrogates(line) else record
