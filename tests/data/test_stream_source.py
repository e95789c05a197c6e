"""What a name stands for in a stream: files, text, addresses, hub data sets, and what tells one from another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apt_ds.config.errors import UserError
from apt_ds.data.stream_shards import HubShard, TextShard
from apt_ds.data.stream_source import stream_source

TALK = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_the_first_record_says_what_a_source_holds(tmp_path: Path) -> None:
    assert stream_source(str(lines(tmp_path / "a.jsonl", {"text": "x"}))).plain_text
    assert not stream_source(str(lines(tmp_path / "b.jsonl", TALK, {"text": "x"}))).plain_text
    (tmp_path / "c.txt").write_text("x")
    source = stream_source(str(tmp_path / "c.txt"))
    assert source.plain_text and isinstance(source.make()[0], TextShard)
    assert not stream_source("builtin:instructions").plain_text
    with pytest.raises(UserError, match="--streaming does not support a slice"):
        stream_source(f"{tmp_path / 'c.txt'}[50%:]")
    for content, problem in (("", "holds no records"), ("[1]\n", "a record must be an object, not list")):
        (tmp_path / "d.jsonl").write_text(content)
        with pytest.raises(UserError, match=problem):
            stream_source(str(tmp_path / "d.jsonl"))


def test_a_folder_is_its_shards_in_order(tmp_path: Path) -> None:
    for number in range(3):
        lines(tmp_path / f"train-{number}.jsonl", *({"text": f"{number} {i}"} for i in range(4)))
    source = stream_source(str(tmp_path))
    assert [record["text"][0] for _, record in source.part().read(99)] == list("000011112222")
    assert [len(source.part(rank, 3).read(99)) for rank in range(3)] == [4, 4, 4]
    (tmp_path / "train-1.jsonl").unlink()
    assert stream_source(str(tmp_path)).identity != source.identity


def test_identity_follows_the_content(tmp_path: Path) -> None:
    first = stream_source(str(lines(tmp_path / "a.jsonl", {"text": "x"}, {"text": "y"}))).identity
    (tmp_path / "moved").mkdir()
    assert stream_source(str(lines(tmp_path / "moved" / "a.jsonl", {"text": "x"}, {"text": "y"}))).identity == first
    assert stream_source(str(lines(tmp_path / "a.jsonl", {"text": "x"}, {"text": "z"}))).identity != first


def test_a_hub_data_set_is_read_shard_by_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    files = [str(lines(tmp_path / f"{n}.jsonl", *({"text": f"{n} {i}"} for i in range(5)))) for n in range(4)]
    original, asked = datasets.load_dataset, []

    def load(name: str, *more: str, **options: Any) -> Any:
        asked.append((name, more, options))
        return original("json", data_files=files, split="train", streaming=True, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = stream_source("some/corpus:en@v1")
    assert asked == [("some/corpus", ("en",), {"split": "train", "streaming": True, "revision": "v1"})]
    assert source.plain_text and all(isinstance(shard, HubShard) for shard in source.make())
    parts = [source.part(rank, 2) for rank in range(2)]
    texts = [[record["text"] for _, record in part.read(7)] for part in parts]
    for rank, part in enumerate(parts):
        again = source.part(rank, 2)
        again.load(json.loads(json.dumps(part.state())))
        rest = [record["text"] for _, record in again.read(99)]
        assert rest == [record["text"] for _, record in part.read(99)] and len(rest) == 3
        texts[rank] += rest
    assert texts[0] == [f"{n} {i}" for n in (0, 2) for i in range(5)] and len({*texts[0], *texts[1]}) == 20
