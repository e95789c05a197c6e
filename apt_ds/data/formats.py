"""Files of records, one format each, read a few records at a time: JSON, JSON lines, TSV, CSV, Parquet, Arrow.

TSV is read as GLUE writes it: a quote is a character like any other. A reader yields records with their places. It
keeps no more than a part of its file in memory, except of a JSON file that is an object with its records under 'data'.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from apt_ds.config.errors import UserError
from apt_ds.data.column_files import read_columns, schema_names
from apt_ds.data.json_files import Located, read_json, read_jsonl
from apt_ds.data.text import check_pointer, cr_lines, ends_lines_with_cr, lines_of, read_text
from apt_ds.data.values import leave_out

LONGEST_CELL = 1 << 26  # characters of a CSV file. A quote that is not closed fills no more memory


def read_table(path: Path, headerless: Sequence[str] = ()) -> Iterator[Located]:
    """The records of a TSV or CSV file. headerless: columns of one that has no header, see `readers.read_file`."""
    lines = _tsv(path) if path.suffix.lower() == ".tsv" else _csv(path)
    first = next(lines, None)
    if first is None:
        raise UserError(f"{path} is empty. Give a file with at least one record")
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
        raise UserError(f"{path}, line 1: two columns have the same name. The first line must name each column")
    return header, True


def _tsv(path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in cr_lines(path) if ends_lines_with_cr(path) else lines_of(path):
        if line.strip():
            yield number, line.rstrip("\r").split("\t")


def _csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    check_pointer(path)
    reader = None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv_reader(file)
            for cells in reader:
                if not is_blank(cells):
                    yield reader.line_num, cells
    except csv.Error as error:
        line = reader.line_num if reader else 1
        raise UserError(f"{path}, line {line}: not valid CSV ({csv_problem(error)})") from error
    except UnicodeDecodeError:
        read_text(path)  # names the byte
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def csv_reader(lines: Iterable[str]) -> Any:
    """The reader of a CSV file. Its cells are longer than what the csv module allows without being asked."""
    csv.field_size_limit(LONGEST_CELL)
    return csv.reader(lines, strict=True)


def csv_problem(error: csv.Error) -> str:
    """What a message says is wrong with a CSV file."""
    if str(error).startswith("field larger than field limit"):
        return f"a cell has more than {LONGEST_CELL} characters. Close its quote or split the cell"
    return str(error)


def is_blank(cells: Sequence[str]) -> bool:
    """Whether the line of a CSV file holds nothing, or nothing but blanks."""
    return not cells or (len(cells) == 1 and bool(cells[0]) and not cells[0].strip())


def column_names(path: Path) -> tuple[str, ...] | None:
    """The columns of a table file. None for a format whose records each have their own."""
    ending = path.suffix.lower()
    if ending not in TABLES:
        return None
    if ending in (".parquet", ".arrow"):
        return schema_names(path)
    first = next(_tsv(path) if ending == ".tsv" else _csv(path), None)
    return tuple(header_of(path, first[1])[0]) if first else None


TABLES = (".tsv", ".csv", ".parquet", ".arrow")  # endings of formats whose records all have the same columns
READERS: dict[str, Callable[[Path], Iterator[Located]]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".tsv": read_table,
    ".csv": read_table,
    ".parquet": read_columns,
    ".arrow": read_columns,
}
