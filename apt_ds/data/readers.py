"""Records of files and hub data sets, each with its place: JSON, JSON lines, TSV, CSV.

TSV is read as GLUE writes it: a quote is a character like any other.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from apt_ds.config.errors import UserError
from apt_ds.data.text import may_hold_surrogates, read_text, without_surrogates

Located = tuple[str, Any]  # place, record

JSON = (".json", ".jsonl")
ENDINGS = (*JSON, ".tsv", ".csv")
TOLERANCE = 0.01  # well-known sets hold a few broken records; more of them is a broken file

_FILE_ENDINGS = {*ENDINGS, ".txt", ".parquet", ".arrow", ".gz", ".zip"}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")

log = logging.getLogger(__name__)


def find_file(name: str, stems: Sequence[str], endings: Sequence[str] = ENDINGS) -> Path | None:
    """The file `name` is, or the one with one of `stems` in the folder it is; None for the name of a hub data set.

    Raises:
        UserError: it is neither, or the folder holds no such file or several.
    """
    path = Path(name)
    if path.is_file():
        return path
    if not path.is_dir():
        if is_hub_name(name):
            return None
        raise UserError(f"no such data file or folder: {name}")
    found = [path / f"{stem}{ending}" for stem in stems for ending in endings]
    found = [file for file in found if file.is_file()]
    if len(found) > 1:
        raise UserError(f"{name} holds both {found[0].name} and {found[1].name}; give the path of one of them")
    if not found:
        wanted = " nor ".join(f"{stem}.*" for stem in stems)
        raise UserError(f"{name} holds no {wanted} (endings: {', '.join(endings)})")
    return found[0]


def is_hub_name(name: str) -> bool:
    """Whether a data set of the hub may be called so."""
    return bool(_HUB_NAME.fullmatch(name)) and Path(name).suffix.lower() not in _FILE_ENDINGS


def read_file(path: Path, endings: Sequence[str] = ENDINGS, headerless: Sequence[str] = ()) -> Iterator[Located]:
    """The records of a .json (one list, or an object with it under 'data'), .jsonl, .tsv or .csv file.

    headerless: the columns of a table that has no header line, recognised by a first line with none of these names.

    Raises:
        UserError: another ending, not readable, empty, not of its form; names file and line.
    """
    ending = path.suffix.lower()
    if ending not in endings:
        raise UserError(f"{path}: unknown file ending '{path.suffix}'; use one of {', '.join(endings)}")
    text = read_text(path)
    if not text.strip():
        raise UserError(f"{path} is empty; it needs at least one record")
    if ending not in JSON:
        return _read_table(path, text, headerless)
    records = _read_list(path, text) if ending == ".json" else _read_lines(path, text)
    return without_surrogates(records, str(path)) if may_hold_surrogates(text) else records


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
        raise json.JSONDecodeError(str(error).split(":")[0], text, 0) from error


def _read_list(path: Path, text: str) -> Iterator[Located]:
    try:
        content = _loads(text)
    except json.JSONDecodeError as error:
        hint = "; name it .jsonl if it holds one record per line" if error.msg == "Extra data" else ""
        where = f"{path}, line {error.lineno}, column {error.colno}"
        raise UserError(f"{where}: not valid JSON ({error.msg}){hint}") from error
    records = content.get("data") if isinstance(content, dict) else content
    if not isinstance(records, list):
        raise UserError(f"{path} must hold a list of records, or an object with such a list under 'data'")
    for number, record in enumerate(records, start=1):
        yield f"{path}, record {number}", record


def _read_lines(path: Path, text: str) -> Iterator[Located]:
    # not splitlines(), which also cuts at separators that JSON allows inside a string
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.lstrip("\ufeff")  # of a file that was joined from several
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield where, _loads(line)
        except json.JSONDecodeError as error:
            problem = f"not valid JSON ({error.msg}); put one record on one line"
            raise UserError(f"{where}, column {error.colno}: {problem}") from error


def _read_table(path: Path, text: str, headerless: Sequence[str]) -> Iterator[Located]:
    lines = list(_tsv(text) if path.suffix.lower() == ".tsv" else _csv(path, text))
    header = [cell.strip() for cell in lines[0][1]]
    if len(header) == len(headerless) and not set(header) & set(headerless):
        header = list(headerless)
    else:
        del lines[0]
    if len(set(header)) < len(header):
        raise UserError(f"{path}, line 1: two columns have the same name; the first line must name each column")
    torn = [f"{path}, line {line}" for line, cells in lines if len(cells) != len(header)]
    leave_out(torn, len(lines), f"not the {len(header)} columns of the first line", str(path))
    for line, cells in lines:
        if len(cells) == len(header):
            yield f"{path}, line {line}", dict(zip(header, cells, strict=True))


def _tsv(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.rstrip("\r").split("\t")


def _csv(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for cells in reader:
            if not is_blank(cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from error


def is_blank(cells: Sequence[str]) -> bool:
    """Whether the line of a CSV file holds nothing, or nothing but blanks."""
    return not cells or (len(cells) == 1 and bool(cells[0]) and not cells[0].strip())


def read_hub(name: str, split: str, config: str = "") -> Iterator[Located]:
    """The records of one split of a hub data set (one of its configurations, where it has several).

    Raises:
        UserError: there is none that can be loaded.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{name} is no file, and hub datasets need `pip install datasets`") from error
    try:
        records = datasets.load_dataset(name, *([config] if config else []), split=split)
    except Exception as error:  # the hub client has no common error class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = f"{name} is neither a file nor a dataset whose split '{split}' can be loaded: {reason}"
        raise UserError(message) from error
    for number, record in enumerate(records, start=1):
        yield f"{name}, record {number}", record


def leave_out(places: Collection[str], total: int, problem: str, name: str) -> None:
    """Warns that the records at `places` are left out of `total` for `problem`; a UserError where they are not few."""
    if not places:
        return
    first = next(iter(places))
    if len(places) > TOLERANCE * total:
        others = f" (as in {len(places) - 1} more records)" if len(places) > 1 else ""
        raise UserError(f"{first}: {problem}{others}; mend or remove the record")
    log.warning("%s: left out %d records; %s: %s", name, len(places), first, problem)


def value_of(record: Any, columns: Sequence[str], where: str) -> Any:
    """What the first of `columns` that a record has holds; UserError where it has none or is no record."""
    if not isinstance(record, dict):
        raise UserError(f"{where}: a record must be an object, not {kind(record)}")
    for column in columns:
        if column in record:
            return record[column]
    present = ", ".join(map(str, record))[:200] or "nothing"
    raise UserError(f"{where}: no column '{' or '.join(columns)}' (it has: {present}); rename or add it")


def text_of(record: Any, columns: Sequence[str], where: str) -> str:
    """`value_of`, which must be text."""
    value = value_of(record, columns, where)
    if not isinstance(value, str):
        column = next(column for column in columns if column in record)
        raise UserError(f"{where}: '{column}' must be text, not {kind(value)}")
    return value


def kind(value: Any) -> str:
    """What a message calls the type of a value read from JSON."""
    return "null" if value is None else type(value).__name__
