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
_POINTER = "version https://git-lfs.github.com/spec/"

log = logging.getLogger(__name__)


def read_text(path: Path) -> str:
    """The text of a file without its byte order mark, with all line ends as they are: CSV keeps those inside quotes.

    Raises:
        UserError: it cannot be read, is not UTF-8, or is the pointer that Git LFS leaves instead of a file.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if text.startswith(_POINTER):
        raise UserError(_not_fetched(path))
    return text


def read_plain(path: Path, flag: str) -> str:
    """`read_text` with every line end as a newline. flag: the option that a UserError names."""
    try:
        return read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    except UserError as error:
        raise UserError(f"{flag}: {error}") from None


def may_hold_surrogates(text: str) -> bool:
    """Whether JSON escapes any, alone or as the half of a pair."""
    return bool(_ESCAPED.search(text))


def without_surrogates(records: Iterator[tuple[str, Any]], name: str) -> Iterator[tuple[str, Any]]:
    """The records with U+FFFD for every half of a character; warns once."""
    places: list[str] = []
    for where, record in records:
        whole = mended(record)
        if whole is not record:
            places.append(where)
        yield where, whole
    if places:
        count, first = len(places), places[0]
        log.warning("%s: replaced lone surrogates by U+FFFD in %d records, the first: %s", name, count, first)


def mended(value: Any) -> Any:
    """The value with all its texts mended; the same object where nothing is to mend."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value) if _SURROGATE.search(value) else value
    if isinstance(value, list):
        made = [mended(item) for item in value]
        return made if any(new is not old for new, old in zip(made, value, strict=True)) else value
    if isinstance(value, dict):
        pairs = [(mended(key), mended(item)) for key, item in value.items()]
        same = all(k is key and i is item for (k, i), (key, item) in zip(pairs, value.items(), strict=True))
        return value if same else dict(pairs)
    return value


def read_pieces(path: Path, flag: str, size: int = 1 << 20) -> Iterator[str]:
    """`read_plain` in pieces of about `size` bytes, so that a file of any size needs no more memory than that.

    Raises:
        UserError: as `read_plain`, once the piece is asked for.
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
        raise UserError(f"{flag}: {path} is not UTF-8 text (byte {place}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{flag}: {path} cannot be read: {error.strerror}") from error


def _not_fetched(path: Path) -> str:
    return f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository"
