"""A part of a text file by the slice notation of `datasets`: `c4.txt[50%:]`, `c4.txt[:100]`, `c4.txt[-20%:]`.

The rows of a text file are its lines, as for `datasets`. A percentage of them is rounded to the nearest line. So
`[:50%]` and `[50%:]` share no line and leave out none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from apt_ds.config.errors import UserError
from apt_ds.data.text import read_pieces

_SLICE = re.compile(r"(?P<name>.+)\[(?P<start>[^\[\]:]*):(?P<end>[^\[\]:]*)\]", re.DOTALL)
_BORDER = re.compile(r"-?\d+%?")
_FORM = "give START:END in lines or in per cent, such as [50%:] or [:100]"


class TextPart(NamedTuple):
    """Lines of a text file.

    Attributes:
        path: The file.
        start: The first line, as the user gave it: a number, a percentage, or '' for the start of the file.
        end: The line after the last one, in the same form. '' for the end of the file.
    """

    path: Path
    start: str = ""
    end: str = ""

    @property
    def whole(self) -> bool:
        """Whether the part is the whole file."""
        return not (self.start or self.end)

    def pieces(self, flag: str) -> Iterator[str]:
        """The text in pieces, see `text.read_pieces`.

        Args:
            flag: The option that a UserError names.

        Raises:
            UserError: The file cannot be read, or the slice has no line.
        """
        if self.whole:
            yield from read_pieces(self.path, flag)
            return
        count = sum(1 for _ in _lines(self.path, flag))
        first, last = (_line_number(border, count, default) for border, default in ((self.start, 0), (self.end, count)))
        if first >= last:
            where = f"[{self.start}:{self.end}] of {self.path}"
            raise UserError(f"{flag}: {where} has no line, as the file has {count} lines. Give a larger slice")
        for number, line in enumerate(_lines(self.path, flag)):
            if first <= number < last:
                yield line

    def read(self, flag: str) -> str:
        """The whole text. See `pieces`."""
        return "".join(self.pieces(flag))


def text_part(name: str, flag: str = "") -> TextPart:
    """The file and the slice that a name means. A slice in the name of an existing file belongs to the name.

    Args:
        name: What the user gave.
        flag: The option, for messages.

    Raises:
        UserError: The slice has another form.
    """
    match = _SLICE.fullmatch(name)
    if match is None or os.path.exists(name):
        return TextPart(Path(name))
    borders = match["start"].strip(), match["end"].strip()
    if wrong := next((border for border in borders if border and not _BORDER.fullmatch(border)), None):
        raise UserError(f"{flag} {name!r}: {wrong!r} is not allowed in a slice: {_FORM}".strip())
    if any(border.endswith("%") and abs(int(border[:-1])) > 100 for border in borders):
        raise UserError(f"{flag} {name!r}: a slice has at most 100 per cent: {_FORM}".strip())
    return TextPart(Path(match["name"]), *borders)


def short_names(names: Sequence[str]) -> list[str]:
    """File names with their slices. The same file name twice has as many of its folders as tell both apart."""
    paths = [Path(name).parts for name in names]
    for depth in range(1, max(map(len, paths), default=0) + 1):
        short = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(short)) == len(names):
            return short
    return list(names)


def _line_number(border: str, count: int, default: int) -> int:
    """The line that a border means in a file of `count` lines. A negative one counts from the end."""
    if not border:
        return default
    number = int(border.rstrip("%"))
    if border.endswith("%"):
        number = round(number * count / 100)
    return max(0, number + count) if number < 0 else min(number, count)


def _lines(path: Path, flag: str) -> Iterator[str]:
    """The lines of a file with their newlines. Memory holds one piece of the file and the line that it begins."""
    rest = ""
    for piece in read_pieces(path, flag):
        *whole, rest = (rest + piece).split("\n")
        yield from (f"{line}\n" for line in whole)
    if rest:
        yield rest
