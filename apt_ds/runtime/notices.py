"""Warnings that a run prints on stderr, kept for its summary. One list per process."""

from __future__ import annotations

import sys

_KEPT: list[str] = []


def start() -> None:
    """Forget the warnings of an earlier run of this process."""
    _KEPT.clear()


def warn(text: str) -> None:
    """Print one line on stderr and keep it."""
    print(text, file=sys.stderr, flush=True)
    keep(text)


def keep(text: str) -> None:
    """Keep a line that another function prints. A line is kept once."""
    if text not in _KEPT:
        _KEPT.append(text)


def kept() -> list[str]:
    """The lines so far, in order."""
    return list(_KEPT)
