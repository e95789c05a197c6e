"""Parquet and Arrow files, read a few rows at a time. Whatever is wrong with one is a UserError of one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apt_ds.config.errors import UserError
from apt_ds.data.text import check_pointer

_BATCH = 1000  # rows that are read at once
_ERRORS = (OSError, ValueError, ArithmeticError, LookupError, NotImplementedError)  # what pyarrow raises
_NO_UTF8 = "Invalid UTF8"  # a part of pyarrow's own message, of text that Parquet keeps as a dictionary


def read_columns(path: Path) -> Iterator[tuple[str, Any]]:
    """The records of a Parquet or Arrow file. A place is the file and the row, counted from 1."""
    number = 0
    for batch in record_batches(path):
        yield from located_rows(path, batch, number)
        number += batch.num_rows
    if not number:
        raise UserError(f"{path} is empty. Give a file with at least one record")


def record_batches(path: Path, row_groups: Sequence[int] | None = None) -> Iterator[Any]:
    """Record batches of pyarrow. row_groups: those of a Parquet file that are read. None: all.

    Raises:
        UserError: the file cannot be read, or two columns have the same name.
    """
    check_pointer(path)
    with one_line_errors(path):
        yield from _parquet(path, row_groups) if path.suffix.lower() == ".parquet" else _arrow(path)


def _parquet(path: Path, row_groups: Sequence[int] | None = None, columns: list[str] | None = None) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        _check_names(path, file.schema_arrow.names)
        yield from file.iter_batches(_BATCH, row_groups, columns)


def _arrow(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        reader = _arrow_reader(source)
        _check_names(path, reader.schema.names)
        is_file = hasattr(reader, "get_batch")
        for batch in (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader:
            _check_values(batch)
            for start in range(0, batch.num_rows, _BATCH):
                yield batch.slice(start, _BATCH)


def _check_values(batch: Any) -> None:
    """Refuse the values of a damaged Arrow file, before a wrong offset makes pyarrow read outside it."""
    for column in batch.columns:
        try:
            column.validate(full=True)
        except ValueError as error:
            # `located_rows` names the row of a text that is not UTF-8
            if _NO_UTF8 not in str(error):
                raise


def _arrow_reader(source: Any) -> Any:
    """The reader of an Arrow file, which has record batches in any order, or of an Arrow stream."""
    import pyarrow as pa

    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    return pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)


def schema_names(path: Path) -> tuple[str, ...]:
    """The columns of a Parquet or Arrow file. Raises UserError."""
    import pyarrow as pa
    from pyarrow import parquet

    with one_line_errors(path):
        if path.suffix.lower() == ".parquet":
            return tuple(parquet.read_schema(path).names)
        with pa.memory_map(str(path)) as source:
            return tuple(_arrow_reader(source).schema.names)


def _check_names(path: Path, names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f"{path}: two columns have the same name ('{name}'). Rename or remove one of them")


def located_rows(path: Path, batch: Any, start: int, chosen: Sequence[int] | None = None) -> Iterator[tuple[str, Any]]:
    """The records of a batch with their places.

    Args:
        path: the file, for messages.
        batch: a record batch of pyarrow.
        start: rows of the file before the batch.
        chosen: the rows of the batch that are decoded, counted from 0. None: all.

    Raises:
        UserError: Python cannot represent a value, even if nothing uses its column. Names row and column.
    """
    rows = range(batch.num_rows) if chosen is None else chosen
    try:
        records = (batch if chosen is None else batch.take(list(chosen))).to_pylist() if rows else ()
    except _ERRORS as error:
        raise UserError(_bad_value(path, batch, start, rows) or unreadable(path, error)) from error
    for i, record in zip(rows, records, strict=True):
        yield f"{path}, row {start + i + 1}", record


def _bad_value(path: Path, batch: Any, start: int, rows: Sequence[int]) -> str:
    """What is wrong with the first value of `rows` that Python cannot represent. '' where there is none."""
    for i in rows:
        row = start + i + 1
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                column[i].as_py()
            except UnicodeDecodeError:
                return f"{path}, row {row}: column '{name}' has text that is not UTF-8. Save it as UTF-8"
            except _ERRORS as error:
                problem = f"column '{name}' has a value that cannot be read as {column.type} ({_reason(error)})"
                return f"{path}, row {row}: {problem}. Mend the value or remove the column"
    return ""


@contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """Errors of pyarrow become UserErrors that name the file."""
    try:
        yield
    except UserError:
        raise
    except _ERRORS as error:
        raise UserError(unreadable(path, error)) from error


def unreadable(path: Path, error: Exception) -> str:
    """What is wrong with a Parquet or Arrow file that pyarrow cannot read."""
    reason = _reason(error)
    if isinstance(error, UnicodeDecodeError):
        return f"{path}: the name of a column is not UTF-8 text. Save the file with another name"
    if _NO_UTF8 in reason:
        return f"{path}: {_column_without_utf8(path)} has text that is not UTF-8. Save it as UTF-8"
    if isinstance(error, NotImplementedError):
        return f"{path}: a column has a type that cannot be read ({reason}). Remove the column or save it as text"
    return f"{path} is not a whole {path.suffix[1:].title()} file ({reason}). Copy or make it again"


def _column_without_utf8(path: Path) -> str:
    """The first column of a Parquet file that cannot be read alone, as a message names it."""
    for name in schema_names(path):
        try:
            for _ in _parquet(path, columns=[name]):
                pass
        except _ERRORS:
            return f"column '{name}'"
    return "a column"


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
