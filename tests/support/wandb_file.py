"""Reads the file that W&B writes in its offline mode: records in the log format of LevelDB."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 1 << 15
START = 7  # bytes of the file's own header
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Any]:
    """Every record of a `.wandb` file."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = path.read_bytes(), START, b""
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        whole = (
            content[at + 7 : at + 7 + length] if kind in (FULL, FIRST) else whole + content[at + 7 : at + 7 + length]
        )
        at += 7 + length
        if kind in (FULL, LAST):
            yield Record.FromString(whole)


def values(items: Any) -> dict[str, Any]:
    """The items of a record as a dictionary."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def history(path: Path) -> list[dict[str, Any]]:
    """Every line of a run's history."""
    return [values(one.history.item) for one in records(path) if one.WhichOneof("record_type") == "history"]


def summary(path: Path) -> dict[str, Any]:
    """The items of the run's summary."""
    given: dict[str, Any] = {}
    for one in records(path):
        if one.WhichOneof("record_type") == "summary":
            given |= values(one.summary.update)
    return given


def configuration(path: Path) -> dict[str, Any]:
    """The configuration of the run."""
    given: dict[str, Any] = {}
    for one in records(path):
        if one.WhichOneof("record_type") == "run":
            given |= values(one.run.config.update)
    return given


def run_id(path: Path) -> str:
    """The id of the run."""
    return next(str(one.run.run_id) for one in records(path) if one.WhichOneof("record_type") == "run")


def exit_code(path: Path) -> int:
    """How the run ended."""
    return next(int(one.exit.exit_code) for one in records(path) if one.WhichOneof("record_type") == "exit")
