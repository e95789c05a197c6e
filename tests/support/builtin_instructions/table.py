"""Tables of hand-written rows, kept as plain text so that they read like a page."""

from __future__ import annotations

import random
from collections.abc import Sequence

Record = tuple[str, str, str]  # instruction, input, output


def rows(text: str) -> list[tuple[str, ...]]:
    """The rows of a table: one per line, fields between ' | '; a line that starts with blanks goes on.

    ' / ' in a field stands for a line break.
    """
    joined = text.strip().replace("\n  ", " ")
    return [tuple(field.replace(" / ", "\n") for field in line.split(" | ")) for line in joined.splitlines()]


def questions(text: str) -> list[Record]:
    """Records of a table of (instruction, output) or (instruction, input, output)."""
    return [(row[0], row[1] if len(row) == 3 else "", row[-1]) for row in rows(text)]


def phrased(text: str, phrasings: Sequence[str], rng: random.Random) -> list[Record]:
    """Records of a table of (subject, output), each asked for in one of several ways.

    A phrasing with '{}' takes the subject into the instruction; otherwise the subject is the input.
    """
    records: list[Record] = []
    for subject, output in rows(text):
        phrasing = rng.choice(phrasings)
        inside = "{}" in phrasing
        records.append((phrasing.replace("{}", subject), "" if inside else subject, output))
    return records


def pool(text: str) -> list[str]:
    """The words of a list to draw from; an underscore stands for a blank inside one."""
    return [word.replace("_", " ") for word in text.split()]


def counted(n: int, noun: str) -> str:
    """'1 day', '2 days'."""
    return f"{n} {noun}{'' if n == 1 else 's'}"
