"""JSON lines behind an address: read on where a connection dropped, whatever the server knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apt_ds.config.errors import UserError
from apt_ds.data.stream_address import AddressShard, is_address
from apt_ds.data.stream_part import Retries, StreamPart
from tests.support.file_server import serving


def test_addresses_are_told_from_files() -> None:
    assert is_address("https://a.example/b/c.jsonl") and is_address("http://127.0.0.1:80/c.JSONL")
    assert not any(map(is_address, ("a.jsonl", "ftp://a/b.jsonl", "https://a.example/b.parquet", "some/corpus")))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_dropped_download_goes_on(ranges: bool, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"n": i}) + "\n" for i in range(200)))
    lines: list[str] = []
    with serving(tmp_path) as server:
        server.ranges = ranges
        server.lasts = [1000, 0, 200, 1500] if ranges else [1000, 1010, 1200, 1205, 1500]
        retries = Retries((0.0, 0.0, 0.0), tell=lines.append)
        part = StreamPart("a", [AddressShard(f"{server.address}/a.jsonl")], retries=retries)
        assert [record["n"] for _, record in part.read(1000)] == list(range(200))
        assert server.offsets[0] == 0 and any(server.offsets) == ranges and not server.lasts
        assert len(lines) == 1 and "a.jsonl: the connection dropped after record 100" in lines[0]
        # half of a line is never a record
        server.lasts = [1000, 0, 0, 0]
        with pytest.raises(UserError, match=r"a\.jsonl cannot be read after record 100: .*\(3 new attempts failed\)"):
            StreamPart("a", [AddressShard(f"{server.address}/a.jsonl")], retries=retries).read(1000)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_shard_that_is_read_to_its_end_has_no_more_lines(ranges: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1}\n')
    with serving(tmp_path) as server:
        server.ranges = ranges
        shard = AddressShard(f"{server.address}/a.jsonl")
        assert list(shard.lines(0)) == [path.read_bytes()] and list(shard.lines(path.stat().st_size)) == []
        if ranges:
            # the file has become shorter since the checkpoint
            with pytest.raises(UserError, match="416"):
                list(shard.lines(path.stat().st_size + 5))


def test_a_refused_address_is_not_tried_again(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n')
    with serving(tmp_path) as server:
        shard = AddressShard(f"{server.address}/a.jsonl")
        first = shard.facts()
        (tmp_path / "a.jsonl").write_text('{"n": 1}\n\n')
        assert shard.facts() != first
        missing = AddressShard(f"{server.address}/b.jsonl")
        for read in (missing.facts, lambda: StreamPart("b", [missing]).read(1)):
            with pytest.raises(UserError, match=r"b\.jsonl cannot be read: 404 Not Found"):
                read()
    with pytest.raises(UserError, match=r"a\.jsonl cannot be read: .*refused"):
        shard.facts()
