"""Whether a source holds plain text or conversations, from its ending and columns. Reads no more than it must."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from apt_ds.config.errors import UserError
from apt_ds.data.formats import READERS, TABLES, column_names
from apt_ds.data.readers import find_source, read_file
from apt_ds.data.text_slices import text_part

TEXT = "text"  # the column of plain text
LAST_PIECE = "apt_ds: last piece of its file"  # beside each piece of a text file. No user's column has this name
TEXT_ENDING = ".txt"
_CONVERSATION = {"instruction", "messages", "conversations"}
_HEAD = 1 << 16  # characters of a JSON file that should hold its first record


def is_plain_text(name: str) -> bool:
    """Whether the source is .txt files, or has a column `text` and none of a conversation.

    A source that cannot be read counts as conversations: their reader says what is wrong with it.

    Args:
        name: a file, a slice of one, a folder of files, or a data set of the hub.

    Raises:
        UserError: a slice of anything but a .txt file, or of one that does not exist.
    """
    part = text_part(name)
    if not part.whole and part.path.suffix.lower() == TEXT_ENDING and not os.path.exists(part.path):
        raise UserError(f"no such data file or folder: {part.path}. Give one that exists")
    if not part.whole and not (os.path.isfile(part.path) and text_files(part.path)):
        raise UserError(f"{name}: a slice requires one {TEXT_ENDING} file. Give the name of the whole source")
    if text_files(part.path):
        return True
    try:
        source = find_source(name, ("train",))
        columns = set(_columns_of_file(source.files[0]) if source.files else source.hub().column_names)
    except (OSError, ValueError, UserError):
        return False
    return has_plain_text(columns)


def has_plain_text(columns: set[str]) -> bool:
    """Whether records with these columns are plain text."""
    return TEXT in columns and not columns & _CONVERSATION


def text_files(path: Path) -> list[Path]:
    """The .txt file, or those in a folder, in order.

    Raises:
        UserError: the folder has files of records beside them. Such a text is often a licence.
    """
    files = sorted(path.iterdir()) if os.path.isdir(path) else [path]
    texts = [file for file in files if file.suffix.lower() == TEXT_ENDING and os.path.isfile(file)]
    others = [file for file in files if file.suffix.lower() in READERS]
    if texts and others:
        raise UserError(f"{path} holds both {texts[0].name} and {others[0].name}. Keep the files of one format")
    return texts


def _columns_of_file(path: Path) -> Sequence[str]:
    if path.suffix.lower() in TABLES:
        return column_names(path) or ()
    first = _first_of_json(path)
    return _names(read_file(path)) if first is None else _names([("", first)])


def _first_of_json(path: Path) -> Any:
    """The first record of a list or of lines, None if it is not at the start of the file."""
    with path.open(encoding="utf-8-sig") as file:
        head = file.read(_HEAD).lstrip().removeprefix("[").lstrip()
    try:
        record, _ = json.JSONDecoder().raw_decode(head)
    except (ValueError, RecursionError):
        return None
    # an object around the records holds them under `data`
    return None if isinstance(record, dict) and "data" in record else record


def _names(records: Iterable[tuple[str, Any]]) -> Sequence[str]:
    return [str(column) for _, record in islice(records, 1) if isinstance(record, dict) for column in record]
