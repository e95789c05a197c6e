"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from apt_ds.config.errors import UserError


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON. See `write_text`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def check_writable(*paths: str) -> None:
    """Check the places of result files before hours of work. The files themselves stay as they are.

    Args:
        *paths: Files. '' is skipped.

    Raises:
        UserError: A folder does not exist, a path is a folder, or no file can be written there.
    """
    for path in filter(None, paths):
        # Path.is_dir raises for names that are too long
        if os.path.isdir(path):
            raise UserError(f"{path!r} is a folder: give the name of a file")
        folder, partial = Path(path).parent, _partial(Path(path))
        if not folder.is_dir():
            raise UserError(f"{path!r} cannot be written: its folder {str(folder)!r} does not exist")
        try:
            # several ranks may do this at once
            with partial.open("ab"):
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{path!r} cannot be written: {error.strerror}; give another file") from None


def _partial(path: Path) -> Path:
    """Where the content of a file is until all of it is written."""
    return path.with_name(f"{path.name}.tmp")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    partial = _partial(path)
    try:
        partial.write_text(text, encoding="utf8")
        partial.replace(path)
    except OSError as error:
        # half of it is of no use, and may hold the last free bytes
        with suppress(OSError):
            partial.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}; free some space") from None
