"""Values of records: text where text is asked for, and broken records that are left out while they are few."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any

from apt_ds.config.errors import UserError

TOLERANCE = 0.01  # well-known sets hold a few broken records. More of them is a broken file

log = logging.getLogger("apt_ds.data.readers")


def leave_out(places: Collection[str], total: int, problem: str, name: str) -> None:
    """Warn that the records at `places` are left out of `total` for `problem`. UserError where they are not few."""
    if not places:
        return
    first = next(iter(places))
    if len(places) > TOLERANCE * total:
        others = f" (as in {len(places) - 1} more records)" if len(places) > 1 else ""
        raise UserError(f"{first}: {problem}{others}. Mend or remove the record")
    log.warning("%s: left out %d records. %s: %s", name, len(places), first, problem)


def value_of(record: Any, columns: Sequence[str], where: str) -> Any:
    """The value of the first of `columns` that a record has. UserError where it has none or is not a record."""
    if not isinstance(record, dict):
        raise UserError(f"{where}: a record must be an object, not {kind(record)}")
    for column in columns:
        if column in record:
            return record[column]
    present = ", ".join(map(str, record))[:200] or "nothing"
    raise UserError(f"{where}: no column '{' or '.join(columns)}' (it has: {present}). Rename or add it")


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
