"""Text files as they are read: encoding, and characters that cannot be written."""

from __future__ import annotations

import codecs
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apt_ds.config.errors import UserError

_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character: JSON can escape one alone, UTF-8 cannot write it
_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")
_MARK = codecs.BOM_UTF8
_LONG_LINE = 1 << 20  # bytes of a file that have a line end
_POINTER = "version https://git-lfs.github.com/spec/"

log = logging.getLogger(__name__)


def read_text(path: Path) -> str:
    """The text of a file without its byte order mark, with all line ends as they are: CSV keeps those inside quotes.

    Raises:
        UserError: it cannot be read, is not UTF-8, or is the pointer that Git LFS leaves instead of a file.
    """
    check_pointer(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(_not_utf8(path, error.start)) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def check_pointer(path: Path) -> None:
    """Raise UserError where a file cannot be read, or is the pointer that Git LFS leaves instead of it."""
    try:
        with path.open("rb") as file:
            beginning = file.read(len(_POINTER) + 3)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if beginning.removeprefix(_MARK).startswith(_POINTER.encode()):
        raise UserError(_not_fetched(path))


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers from 1, without the newline and the file's byte order mark.

    Only a newline ends a line, not what `str.splitlines` cuts at too. One line is in memory at a time.
    """
    check_pointer(path)
    place = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                text = line.removeprefix(_MARK) if number == 1 else line
                try:
                    yield number, text.decode("utf-8").removesuffix("\n")
                except UnicodeDecodeError as error:
                    raise UserError(_not_utf8(path, place + error.start)) from error
                place += len(text)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def ends_lines_with_cr(path: Path) -> bool:
    """Whether a carriage return alone ends the lines of a file: its beginning has some and no newline."""
    check_pointer(path)
    try:
        with path.open("rb") as file:
            beginning = file.readline(_LONG_LINE)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return b"\r" in beginning and not beginning.endswith(b"\n")


def cr_lines(path: Path) -> Iterator[tuple[int, str]]:
    """`lines_of` a file whose lines end with a carriage return."""
    try:
        with path.open(encoding="utf-8-sig", newline="\r") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.removesuffix("\r")
    except UnicodeDecodeError:
        read_text(path)  # names the byte
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _not_utf8(path: Path, byte: int) -> str:
    return f"{path} is not UTF-8 text (byte {byte}). Save it as UTF-8"


def may_hold_surrogates(text: str) -> bool:
    """Whether JSON escapes any, alone or as the half of a pair."""
    return bool(_ESCAPED.search(text))


class Mender:
    """Puts U+FFFD for every half of a character in the records of a file, and counts those records."""

    def __init__(self, name: str) -> None:
        self.name, self.count, self.first = name, 0, ""

    def mend(self, record: Any, where: str) -> Any:
        """The record without halves of characters."""
        whole = mended(record)
        if whole is not record:
            self.count += 1
            self.first = self.first or where
        return whole

    def warn(self) -> None:
        """Warn of the records that were mended. Call it after the last one."""
        if self.count:
            message = "%s: replaced lone surrogates by U+FFFD in %d records, the first: %s"
            log.warning(message, self.name, self.count, self.first)


def mended(value: Any) -> Any:
    """The value with all its texts mended. The same object where nothing is to mend."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value) if _SURROGATE.search(value) else value
    if isinstance(value, list):
        items = [mended(item) for item in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    if isinstance(value, dict):
        pairs = [(mended(key), mended(item)) for key, item in value.items()]
        same = all(k is key and i is item for (k, i), (key, item) in zip(pairs, value.items(), strict=True))
        return value if same else dict(pairs)
    return value


def read_pieces(path: Path, flag: str, size: int = 1 << 20) -> Iterator[str]:
    """The text of a file in pieces, without its byte order mark, with every line end as a newline.

    Args:
        path: the file.
        flag: the option that a UserError names.
        size: bytes of a piece, about. A file of any size needs no more memory than that.

    Raises:
        UserError: the file cannot be read, is not UTF-8, or is the pointer that Git LFS leaves instead of a file. It is
            raised once the piece is asked for.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(decoder, translate=True)
    done, waiting = 0, 0
    try:
        with path.open("rb") as file:
            content = file.read(max(size, 2 * len(_POINTER)))
            if content.startswith(_POINTER.encode()):
                raise UserError(f"{flag}: {_not_fetched(path)}")
            if content.startswith(codecs.BOM_UTF8):
                content, done = content.removeprefix(codecs.BOM_UTF8), len(codecs.BOM_UTF8)
            while True:
                if text := newlines.decode(content, final=not content):
                    yield text
                if not content:
                    return
                done, waiting = done + len(content), len(decoder.getstate()[0])
                content = file.read(size)
    except UnicodeDecodeError as error:
        place = done - waiting + error.start
        raise UserError(f"{flag}: {_not_utf8(path, place)}") from error
    except OSError as error:
        raise UserError(f"{flag}: {path} cannot be read: {error.strerror}") from error


def _not_fetched(path: Path) -> str:
    return f"{path} is a Git LFS pointer, not the file itself. Run `git lfs pull` in its repository"
