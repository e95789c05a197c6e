"""Shards of a stream: text in pieces, lines of the others left alone, positions that pass over what was read."""

from __future__ import annotations

from pathlib import Path

import pytest

from apt_ds.config.errors import UserError
from apt_ds.data.source_kind import LAST_PIECE
from apt_ds.data.stream_part import StreamPart
from apt_ds.data.stream_shards import ColumnShard, LineShard, shard_of_file


def test_a_text_file_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apt_ds.data.stream_shards._TEXT_PIECE", 64)
    text = "\ufeff" + "\n".join(f"line {i} of ünïcode" for i in range(40)) + "\n" + "x" * 200 + "é" * 90
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf8")
    parts = [StreamPart("s", [shard_of_file(path)], rank, 2) for rank in range(2)]
    pieces = sorted((located for part in parts for located in part.read(1000)), key=lambda one: int(one[0].split()[-1]))
    assert "".join(record["text"] for _, record in pieces) == text.removeprefix("\ufeff")
    assert [record[LAST_PIECE] for _, record in pieces] == [False] * (len(pieces) - 1) + [True]
    path.write_bytes(b"a" * 100 + b"\xff")
    with pytest.raises(UserError, match=r"a.txt is not UTF-8 text \(byte 100\)"):
        StreamPart("s", [shard_of_file(path)]).read(100)


def test_errors_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1}\n{"n": 2}\n{broken\n')
    assert len(StreamPart("s", [shard_of_file(path)], 1, 2).read(9)) == 1  # the others' lines are theirs to check
    with pytest.raises(UserError, match=r"a\.jsonl, line 3, column 2: not valid JSON"):
        StreamPart("s", [shard_of_file(path)], 0, 2).read(9)


def test_lines_are_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"n": 0}\n\n{"n": 1}\n{"n": 2}', encoding="utf8")
    shard = LineShard(str(path))
    reading = shard.records([], lambda number: True)
    assert [next(reading), next(reading)] == [(f"{path}, line 1", {"n": 0}), (f"{path}, line 3", {"n": 1})]
    position = shard.current()
    assert position[:2] == [2, 3] and shard.number == 2
    # what comes before the position may be anything
    path.write_bytes(b"x" * position[2] + path.read_bytes()[position[2] :])
    assert list(shard.records(position, lambda number: True)) == [(f"{path}, line 4", {"n": 2})]
    path.write_bytes(b'{"n": "\xff"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: not UTF-8 text \(byte 7 of it\)"):
        list(shard.records([], lambda number: True))


def test_row_groups_before_a_position_are_not_read(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"n": list(range(50))}), path, row_group_size=10)
    content = bytearray(path.read_bytes())
    content[4:60] = bytes(56)  # the first row group is broken
    path.write_bytes(content)
    located = list(ColumnShard(str(path)).records([25], lambda number: number % 2 == 1))
    assert located == [(f"{path}, row {n + 1}", {"n": n}) for n in range(25, 50, 2)]
    with pytest.raises(UserError, match=r"a\.parquet is not a whole Parquet file"):
        list(ColumnShard(str(path)).records([], lambda number: True))
