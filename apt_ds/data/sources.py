"""The sources that an option names: files, folders and hub data sets, each with its weight.

`a.jsonl:0.7,b.parquet:0.3` names two sources. A number after the last colon is a weight. So a hub data set whose
configuration is a number needs its revision too: `name:2023@main`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from apt_ds.config.errors import UserError
from apt_ds.config.paths import check_path
from apt_ds.data.text_slices import text_part

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class WeightedSource(NamedTuple):
    """A source of an option.

    Attributes:
        name: the source as a reader of data takes it.
        weight: its weight, above 0. None if the option states no weights.
    """

    name: str
    weight: float | None = None


def parse_sources(text: str, flag: str) -> list[WeightedSource]:
    """The sources of an option's value, in order.

    A comma or colon in the name of an existing file belongs to the name.

    Args:
        text: the value.
        flag: the option, for messages.

    Raises:
        UserError: an empty name, a weight that is not positive, a source without weight beside one with weight, or the
            same source twice.
    """
    sources = [_with_weight(item.strip(), f"{flag} {text!r}") for item in _items(text)]
    if any(not source.name for source in sources):
        raise UserError(f"{flag} {text!r} has an empty name. Give the name of a source before and after each comma")
    weights = [source.weight for source in sources]
    if None in weights and any(weight is not None for weight in weights):
        name = sources[weights.index(None)].name
        raise UserError(f"{flag}: {name!r} has no weight, other sources have one. Give all sources a weight, or none")
    seen: set[str] = set()
    for source in sources:
        _check_name(flag, source.name)
        if _identity(source.name) in seen:
            raise UserError(f"{flag}: {source.name!r} is named twice. Give each source once, with its whole weight")
        seen.add(_identity(source.name))
    return sources


def shares(weights: list[float]) -> list[float]:
    """Weights as fractions of their sum."""
    return [weight / sum(weights) for weight in weights]


def apportion(total: int, weights: list[float]) -> list[int]:
    """`total` divided in proportion to weights, by largest remainders. The earlier source wins a draw."""
    exact = [total * share for share in shares(weights)]
    counts = [math.floor(value) for value in exact]
    for i in sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _items(text: str) -> Iterator[str]:
    """The text between commas. Several pieces are one item if a file has their joint name."""
    pieces = text.split(",")
    start = 0
    while start < len(pieces):
        end = start + 1
        for last in range(len(pieces), start + 1, -1):
            joint = ",".join(pieces[start:last]).strip()
            if any(os.path.exists(text_part(name).path) for name in (joint, _cut(joint)[0])):
                end = last
                break
        yield ",".join(pieces[start:end])
        start = end


def _cut(item: str) -> tuple[str, str]:
    """Name and weight of an item, '' without a weight."""
    name, colon, number = item.rpartition(":")
    return (name, number) if colon and _NUMBER.fullmatch(number.strip()) else (item, "")


def _with_weight(item: str, where: str) -> WeightedSource:
    name, number = _cut(item)
    if not number or os.path.exists(item):
        return WeightedSource(item)
    weight = float(number)
    if not 0 < weight < math.inf:
        raise UserError(f"{where}: the weight of {name!r} is {number.strip()}. Give a number above 0")
    return WeightedSource(name.strip(), weight)


def _check_name(flag: str, name: str) -> None:
    """Raise UserError for a name that no file can have. An address of the web may have any length."""
    if "://" not in name:
        advice = "give a file, a folder or a hub name, not the records themselves"
        check_path(flag, str(text_part(name, flag).path), advice)


def _identity(name: str) -> str:
    return str(Path(name).resolve()) if os.path.exists(name) else name
