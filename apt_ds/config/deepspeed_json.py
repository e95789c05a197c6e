"""Reads JSON as DeepSpeed's users write it: with comments, commas before a closing bracket, a byte order mark."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from apt_ds.config.errors import UserError

# a text, a comment of three kinds, or a comma that nothing follows
PARTS = re.compile(
    r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|#[^\n]*|/\*.*?\*/|,(?=(?:\s|//[^\n]*|#[^\n]*|/\*.*?\*/)*[}\]])', re.DOTALL
)


def read_json(path: str) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: the file cannot be read, or is no object. The message names file, line and column.
    """
    try:
        data = Path(path).read_bytes()
        value = json.loads(without_comments(data.decode(json.detect_encoding(data))), object_pairs_hook=unrepeated)
    except OSError as error:
        raise UserError(f"DeepSpeed config {path!r}: {error.strerror}. Give a file, as ds_configs/zero3.json") from None
    except UserError as error:
        raise UserError(f"DeepSpeed config {path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"DeepSpeed config {path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"DeepSpeed config {path}: expected an object, found {type(value).__name__}")
    return value


def without_comments(text: str) -> str:
    """The text with blanks in place of comments, so that places in errors stay right."""
    return PARTS.sub(
        lambda match: match[0] if match[0][0] == '"' else re.sub(r"[^\n]", " ", match[0]), text.lstrip("\ufeff")
    )


def unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's pairs as a dictionary. Raises UserError for a name that it has twice."""
    repeated = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if repeated:
        raise UserError(f"an object has {repeated[0]!r} more than once. Remove all but one")
    return dict(pairs)
