"""The parts of a stream: together they are the stream, and each goes on from any position."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apt_ds.config.errors import Stopped, UserError
from apt_ds.data.readers import read_file
from apt_ds.data.stream_part import Retries, Start, StreamPart
from apt_ds.data.stream_shards import HubShard, LineShard, Shard, shard_of_file

RECORDS = [{"text": f"record {i}", "n": i} for i in range(137)]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    """A file of records by its ending."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(records), path, row_group_size=10)
    elif path.suffix == ".arrow":
        import pyarrow as pa

        table = pa.Table.from_pylist(records)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=9)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".csv":
        path.write_text("text,n\n" + "".join(f"{record['text']},{record['n']}\n" for record in records))
    else:
        path.write_text("".join(json.dumps(record) + "\n\n" for record in records))
    return path


def hub_shards(tmp_path: Path, count: int) -> list[Shard]:
    """Shards of a stream of `datasets`."""
    import datasets

    files = []
    for i in range(count):
        files.append(str(write(tmp_path / f"hub-{i}.jsonl", RECORDS[i::count])))
    stream = datasets.load_dataset(
        "json", data_files=files, split="train", streaming=True, cache_dir=str(tmp_path / "cache")
    )
    assert stream.num_shards == count
    return [HubShard("hub", lambda i=i: stream.shard(count, i)) for i in range(count)]


def shards_of(kind: str, tmp_path: Path, count: int) -> list[Shard]:
    if kind == "hub":
        return hub_shards(tmp_path, count)
    return [shard_of_file(write(tmp_path / f"part-{i}{kind}", RECORDS[i::count])) for i in range(count)]


def everything(part: StreamPart, count: int = 7) -> list[tuple[str, int]]:
    """One pass."""
    records: list[Any] = []
    while not part.passes:
        records += part.read(count)
    return [(where, int(record["n"])) for where, record in records]


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".parquet", ".arrow", "hub"])
@pytest.mark.parametrize(("count", "world"), [(1, 1), (1, 3), (3, 2), (4, 2)])
def test_the_parts_are_disjoint_and_together_the_stream(kind: str, count: int, world: int, tmp_path: Path) -> None:
    parts = [everything(StreamPart("s", shards_of(kind, tmp_path, count), rank, world)) for rank in range(world)]
    assert sorted(n for part in parts for _, n in part) == list(range(len(RECORDS)))
    assert len({where for part in parts for where, _ in part}) == len(RECORDS) or kind == "hub"
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= count
    if kind != "hub" and count == 1 == world:
        assert [where for where, _ in parts[0]] == [where for where, _ in read_file(tmp_path / f"part-0{kind}")]


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet", ".arrow", "hub"])
@pytest.mark.parametrize(("count", "world"), [(1, 2), (4, 2), (3, 2)])
def test_a_part_goes_on_from_every_position(kind: str, count: int, world: int, tmp_path: Path) -> None:
    shards = shards_of(kind, tmp_path, count)
    for start in (Start(), Start(0, 5)):
        part = StreamPart("s", shards, 1, world, start)
        batches, states = [], []
        for _ in range(30):
            states.append(json.loads(json.dumps(part.state())))
            batches.append(part.read(5))
        assert part.passes >= 2
        for number in range(0, 30, 3):
            again = StreamPart("s", shards, 1, world, start)
            again.load(states[number])
            assert [again.read(5) for _ in range(4)][: 30 - number] == batches[number : number + 4], number


def test_held_out_records_are_no_part(tmp_path: Path) -> None:
    shards = shards_of(".jsonl", tmp_path, 2)
    first = StreamPart("s", shards)
    held_out = [record["n"] for _, record in first.read(20)]
    start = first.next_place()
    assert start == Start(0, 20)
    for world in (1, 2):
        parts = [everything(StreamPart("s", shards, rank, world, start)) for rank in range(world)]
        assert sorted([*held_out, *(n for part in parts for _, n in part)]) == list(range(len(RECORDS)))
    first.read(48)  # the first shard and no more
    start = first.next_place()
    assert start == Start(1, 0)
    assert [len(everything(StreamPart("s", shards, rank, 2, start))) for rank in (0, 1)] == [34, 34]


class Dropping(LineShard):
    """Lines whose connection drops after some of them."""

    retried = (ConnectionError,)

    def __init__(self, path: Path, lasts: list[int]) -> None:
        super().__init__(str(path))
        self.lasts = lasts

    def lines(self, offset: int) -> Iterator[bytes]:
        """The lines, as many as the connection lasts."""
        last = self.lasts.pop(0) if self.lasts else 1000
        for number, line in enumerate(super().lines(offset)):
            if number == last:
                raise ConnectionError("reset by peer")
            yield line


def test_a_dropped_connection_is_retried(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, beats = write(tmp_path / "a.jsonl", RECORDS), list[int]()
    retries = Retries((0.0, 0.0, 0.0), lambda: beats.append(1))
    part = StreamPart("s", [Dropping(path, [40, 0, 0, 30, 2, 0, 0, 8])], retries=retries)
    assert [n for _, n in everything(part)] == list(range(len(RECORDS)))
    assert len(beats) == 8 and [one.message for one in caplog.records] == [
        f"{path}: the connection dropped after record 20 (reset by peer): trying again"
    ]
    part = StreamPart("s", [Dropping(path, [40, 0, 0, 0, 0])], retries=retries)
    with pytest.raises(UserError, match=r"cannot be read after record 20: reset by peer \(3 new attempts failed\)"):
        everything(part)


def test_a_signal_is_no_dropped_connection(tmp_path: Path) -> None:
    """The client of the hub has no class of errors, so that reading goes on after any other."""

    def records() -> Iterator[dict[str, int]]:
        yield {"n": 1}
        raise Stopped(2, "stopped")

    part = StreamPart("hub", [HubShard("hub", records)], retries=Retries((0.0,), tell=lambda text: None))
    with pytest.raises(Stopped):
        part.read(5)
