"""Files of the small models' tasks, which `test_fuzz.py` spoils."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apt_ds.data import glue, seq2seq, squad
from tests.support import tiny
from tests.support.fuzz_values import write
from tests.support.text_fixtures import pair_tokenizer, squad_json


def table(separator: str) -> Callable[[Any], str]:
    """Write lists of cells as lines. A spoilt table may hold other values too."""

    def lines(value: Any) -> str:
        rows = value if isinstance(value, list) else [value]
        return "\n".join(separator.join(map(str, row)) if isinstance(row, list) else str(row) for row in rows)

    return lines


def pairs(draw: random.Random, folder: Path) -> Callable[[], object]:
    """A file of GLUE."""
    header, rows = ["sentence1", "sentence2", "label"], [["the cat", "a dog", str(i % 2)] for i in range(4)]
    ending = draw.choice(["tsv", "csv", "json"])
    if ending == "json":
        path = write(folder / "train.json", [dict(zip(header, row, strict=True)) for row in rows], draw)
    else:
        path = write(folder / f"train.{ending}", [header, *rows], draw, table("\t" if ending == "tsv" else ","))
    task = draw.choice(["rte", "mrpc", "stsb"])
    return lambda: glue.encode(glue.read(task, str(path), "train"), pair_tokenizer(), 16)


def articles(draw: random.Random, folder: Path) -> Callable[[], object]:
    """A file of SQuAD, read, cut into windows and answered."""
    content = squad_json(("the big cat", [("the", [("cat", 8)]), ("a", [])]), ("a red dog", [("the", [("red", 2)])]))
    path = write(folder / "train.json", content, draw)

    def read() -> None:
        questions = squad.read(str(path), "train")
        squad.encode(questions, pair_tokenizer(), 16, 2)
        squad.windows(questions, pair_tokenizer(), 16, 2)

    return read


def exchanges(draw: random.Random, folder: Path) -> Callable[[], object]:
    """A file of sources and targets."""
    header, rows = ["source", "target"], [["the cat", "a dog"]] * 3
    if draw.random() < 0.5:
        path = write(folder / "train.json", [dict(zip(header, row, strict=True)) for row in rows], draw)
    else:
        path = write(folder / "train.csv", [header, *rows], draw, table(","))
    return lambda: seq2seq.encode(seq2seq.read("text", str(path), "train"), tiny.tokenizer(), 16, 8)
