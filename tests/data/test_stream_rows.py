"""Rows of a stream: windows are shuffled, passes are whole, sources are mixed, and every state is exact."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from apt_ds.config.errors import UserError
from apt_ds.data.formats import Located
from apt_ds.data.stream_encoders import ArrayRow, Encoder, State
from apt_ds.data.stream_part import StreamPart
from apt_ds.data.stream_rows import EncodedPart, MixedRows, ShuffledRows
from apt_ds.data.stream_shards import shard_of_file


class Numbers(Encoder):
    """A row for each record that has a number, and two for each tenth."""

    def __init__(self) -> None:
        self.sum = 0

    def encode(self, records: Sequence[Located]) -> list[ArrayRow]:
        rows = []
        for _, record in records:
            self.sum += record["n"]
            if record["n"] % 7:
                rows += [{"input_ids": np.array([record["n"]], np.int32)}] * (2 if record["n"] % 10 == 0 else 1)
        return rows

    def end_pass(self) -> None:
        """Nothing is checked."""

    def state(self) -> State:
        return {"sum": self.sum}

    def load(self, state: State) -> None:
        self.sum = state["sum"]

    @property
    def dropped(self) -> int:
        return self.sum


def encoded(path: Path, count: int, rank: int = 0, world: int = 1) -> EncodedPart:
    if not path.exists():
        path.write_text("".join(json.dumps({"n": n}) + "\n" for n in range(count)))
    return EncodedPart(StreamPart("s", [shard_of_file(path)], rank, world), Numbers())


def numbers(rows: Sequence[ArrayRow]) -> list[int]:
    return [int(row["input_ids"][0]) for row in rows]


def expected(count: int) -> list[int]:
    return [n for n in range(count) if n % 7 for _ in range(2 if n % 10 == 0 else 1)]


@pytest.mark.parametrize("count", [64, 100, 128, 200])
def test_a_pass_ends_and_the_next_begins(count: int, tmp_path: Path) -> None:
    part = encoded(tmp_path / "a.jsonl", count)
    for _ in range(2):
        values: list[int] = []
        while len(rows := part.read(9)) == 9:
            values += numbers(rows)
        assert [*values, *numbers(rows)] == expected(count)
    assert part.encoder.dropped == 2 * sum(range(count))


def test_rows_go_on_from_every_state(tmp_path: Path) -> None:
    part = encoded(tmp_path / "a.jsonl", 150)
    states, batches = [], []
    for _ in range(80):
        states.append(json.loads(json.dumps(part.state())))
        batches.append(numbers(part.read(4)))
    for number in range(76):
        again = encoded(tmp_path / "a.jsonl", 150)
        again.load(states[number])
        assert [numbers(again.read(4)) for _ in range(4)] == batches[number : number + 4]


def test_windows_are_shuffled_and_end_with_the_pass(tmp_path: Path) -> None:
    rows = ShuffledRows(encoded(tmp_path / "a.jsonl", 150), 32, [1, 0, 0])
    whole = expected(150)
    size = len(whole)
    passes = [numbers([rows.next() for _ in range(size)]) for _ in range(2)]
    assert passes[0] != passes[1] != whole and sorted(passes[0]) == sorted(passes[1]) == whole
    # a row moves inside its window
    assert all(sorted(passes[0][i : i + 32]) == whole[i : i + 32] for i in range(0, size, 32))
    again = ShuffledRows(encoded(tmp_path / "a.jsonl", 150), 32, [2, 0, 0])
    assert numbers([again.next() for _ in range(size)]) != passes[0]
    in_order = ShuffledRows(encoded(tmp_path / "a.jsonl", 150), 1, [1, 0, 0])
    assert numbers([in_order.next() for _ in range(size)]) == whole


def mixed(folder: Path, rank: int) -> MixedRows:
    parts = [encoded(folder / f"{count}.jsonl", count, rank, 2) for count in (150, 60)]
    return MixedRows([ShuffledRows(part, 16, [3, i, rank]) for i, part in enumerate(parts)], (0.7, 0.3))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_mixture_goes_on_from_every_state(rank: int, tmp_path: Path) -> None:
    straight, states, batches = mixed(tmp_path, rank), [], []
    for _ in range(70):
        states.append(json.loads(json.dumps(straight.state())))
        batches.append(numbers(straight.take(5)))
    for number in range(66):
        again = mixed(tmp_path, rank)
        again.load(states[number])
        assert [numbers(again.take(5)) for _ in range(3)] == batches[number : number + 3]
        assert again.dropped > 0


def test_a_part_without_records_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n')
    with pytest.raises(UserError, match="s has no record left for process 1"):
        encoded(tmp_path / "a.jsonl", 1, 1, 2).read(1)
