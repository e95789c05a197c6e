"""Files that are written whole or not at all."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from apt_ds.config.errors import UserError


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON. See `write_text`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.tmp")
    try:
        partial.write_text(text, encoding="utf8")
        partial.replace(path)
    except OSError as error:
        # half of it is of no use, and may hold the last free bytes
        with suppress(OSError):
            partial.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}; free some space") from None
