"""Values and texts with something wrong in them, the same for the same draw."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

JUNK = [None, True, -1, 0, 3.5, 1e400, float("nan"), "", "auto", "zwölf", [], {}, [[]], {"a": 1}, "x" * 3000, 10**30]


def spoil(value: Any, draw: random.Random) -> Any:
    """A JSON value with something replaced, removed, renamed or added at a random depth."""
    value = copy.deepcopy(value)
    node = value
    while isinstance(node, dict | list) and node:
        key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
        inner = node[key]
        if isinstance(inner, dict | list) and inner and draw.random() < 0.7:
            node = inner
            continue
        harm = draw.randrange(4)
        if harm == 0 or (harm == 2 and isinstance(node, list)):
            node[key] = draw.choice(JUNK)
        elif harm == 1:
            del node[key]
        elif harm == 2:
            node[f"{key}s"] = node.pop(key)
        elif isinstance(node, dict):
            node[draw.choice(["", "steps", "ä", "rank "])] = draw.choice(JUNK)
        else:
            node.insert(key, draw.choice(JUNK))
        return value
    return draw.choice(JUNK)


def tear(text: str, draw: random.Random) -> bytes:
    """A text with bytes cut out, put in or replaced."""
    content = bytearray(text.encode())
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(max(1, len(content)))
        content[place : place + draw.choice([0, 1, 40])] = draw.choice(
            [draw.randbytes(3), b"", b"{", b"]", b'"', b"\n"]
        )
    return bytes(content)


def write(path: Path, value: Any, draw: random.Random, render: Callable[[Any], str] = json.dumps) -> Path:
    """A spoilt value, well-formed or torn."""
    text = render(spoil(value, draw))
    path.write_bytes(tear(text, draw) if draw.random() < 0.4 else text.encode())
    return path
