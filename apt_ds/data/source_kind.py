"""Whether a source holds plain text or conversations, from its ending and columns. Reads no more than it must."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from apt_ds.config.errors import UserError
from apt_ds.data.readers import is_hub_name, read_file, read_hub

TEXT = "text"  # the column of plain text
TEXT_ENDING = ".txt"
_CONVERSATION = {"instruction", "messages", "conversations"}
_HEAD = 1 << 16  # characters of a JSON file that should hold its first record


def is_plain_text(name: str, split: str = "train") -> bool:
    """Whether the source is a .txt file, or has a column `text` and none of a conversation.

    A source that cannot be read counts as conversations: their reader says what is wrong with it.

    Args:
        name: a file, a folder of files, or a data set of the hub.
        split: a split of a data set of the hub.
    """
    path = Path(name)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        return bool(files) and is_plain_text(str(files[0]))
    if path.suffix.lower() == TEXT_ENDING:
        return path.is_file()
    columns = set(_columns(path, name, split))
    return TEXT in columns and not columns & _CONVERSATION


def _columns(path: Path, name: str, split: str) -> Sequence[str]:
    """The columns of the first record. Empty if the source cannot be read."""
    try:
        if path.is_file():
            return _columns_of_file(path)
        return _names(read_hub(name, split)) if is_hub_name(name) else ()
    except (OSError, ValueError, UserError, csv.Error):
        return ()


def _columns_of_file(path: Path) -> Sequence[str]:
    ending = path.suffix.lower()
    if ending == ".parquet":
        from pyarrow import parquet

        return parquet.read_schema(path).names
    if ending == ".arrow":
        return _arrow_names(path)
    if ending in (".csv", ".tsv"):
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file, delimiter="\t" if ending == ".tsv" else ","), [])
        return [cell.strip() for cell in header]
    first = _first_of_json(path)
    return _names(read_file(path)) if first is None else _names([("", first)])


def _arrow_names(path: Path) -> Sequence[str]:
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        try:
            return pyarrow.ipc.open_stream(source).schema.names
        except pyarrow.ArrowInvalid:
            return pyarrow.ipc.open_file(source).schema.names


def _first_of_json(path: Path) -> Any:
    """The first record of a list or of lines, None if it is not at the start of the file."""
    with path.open(encoding="utf-8-sig") as file:
        head = file.read(_HEAD).lstrip().removeprefix("[").lstrip()
    try:
        record, _ = json.JSONDecoder().raw_decode(head)
    except ValueError:
        return None
    # an object around the records holds them under `data`
    return None if isinstance(record, dict) and "data" in record else record


def _names(records: Iterable[tuple[str, Any]]) -> Sequence[str]:
    return [str(column) for _, record in islice(records, 1) if isinstance(record, dict) for column in record]
