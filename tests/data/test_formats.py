"""Files that are read a part at a time: the same records, places and errors as when read whole, in little memory."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pytest

from apt_ds.config.errors import UserError
from apt_ds.data import formats, json_files, readers
from apt_ds.data.conversations import load_examples
from apt_ds.data.stream_part import StreamPart
from apt_ds.data.stream_shards import shard_of_file
from tests.support.column_tables import NAMES, write_table

RECORD = {"instruction": "Add.", "input": "1", "output": "2"}


def written(path: Path, content: str | bytes) -> Path:
    """A file with this content."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


LISTS = [
    "[]",
    " \n[ ]\n ",
    "[1, 23, 456]",
    '["a", "]", "\\u00e9\\"", "東京"]',
    '\ufeff[{"a": [1, [2]]},\n{"b": null} , {}]\n\n',
    json.dumps([{"x": "y" * 70}, {"x": 1}]),
]


@pytest.mark.parametrize("block", [1, 3, 1000])
@pytest.mark.parametrize("text", LISTS)
def test_a_list_is_decoded_block_by_block(
    block: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "_BLOCK", block)
    path = written(tmp_path / "a.json", text)
    monkeypatch.setattr(json_files, "_whole", lambda *_: pytest.fail("it was read whole"))
    assert [record for _, record in formats.read_json(path)] == json.loads(text.removeprefix("\ufeff"))


BROKEN = {
    '[{"a": 1},\n{"a": }]': r"line 2, column 7: not valid JSON",
    '[{"a": 1}\n{"a": 2}]': r"line 2, column 1: not valid JSON",
    '[{"a": 1}]\n[2]': r"line 2, column 1: not valid JSON \(Extra data\)\. Name it .jsonl",
    '[{"a": 1},': "not valid JSON",
    '[{"a": 1},]': "line 1, column 1.: not valid JSON",
    '[{"a": "': "not valid JSON",
    '{"a": 1}\n{"a": 2}': "Name it .jsonl",
    "": "is empty",
}


@pytest.mark.parametrize("block", [1, 1000])
@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_list_is_named_by_its_line(
    block: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "_BLOCK", block)
    with pytest.raises(UserError, match=BROKEN[text]) as mistake:
        list(formats.read_json(written(tmp_path / "a.json", text)))
    assert "a.json" in str(mistake.value) and "\n" not in str(mistake.value)


@pytest.mark.parametrize("name", NAMES)
def test_tables_of_columns_have_rows(name: str, tmp_path: Path) -> None:
    table = pa.table({"instruction": ["Add.", "Say."], "input": ["1", None], "output": ["2", "x"]})
    path = write_table(tmp_path / name, table)
    assert [example.output for example in load_examples(path)] == ["2", "x"]
    assert [place for place, _ in formats.read_columns(path)] == [f"{path}, row 1", f"{path}, row 2"]
    messages = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]
    assert len(load_examples(write_table(tmp_path / name, pa.table({"messages": messages})))) == 1


@pytest.mark.parametrize(
    ("column", "problem"),
    [(pa.array(["x", None]), "not null"), (pa.array([3, 4]), "must be text, not int")],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_row_that_cannot_be_used_is_named(name: str, column: pa.Array, problem: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / name, pa.table({"instruction": ["Add.", "Say."], "output": column}))
    with pytest.raises(UserError, match=problem) as mistake:
        load_examples(path)
    assert f"{path}, row " in str(mistake.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_table_is_one_line(name: str, tmp_path: Path) -> None:
    path = write_table(
        tmp_path / name, pa.table({"instruction": ["Add."] * 5000, "output": [str(i) for i in range(5000)]})
    )
    written(path, path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="is not a whole") as mistake:
        load_examples(path)
    assert str(path) in str(mistake.value) and "\n" not in str(mistake.value)


def lines(bad: int, total: int, problem: str) -> str:
    """Records, one a line, of which line `bad` is something else."""
    good = json.dumps(RECORD)
    return "\n".join([good] * (bad - 1) + [problem] + [good] * (total - bad))


@pytest.mark.parametrize("problem", ['{"instruction": "Add."', json.dumps({**RECORD, "output": 3})])
def test_a_malformed_row_among_a_hundred_thousand_is_named(problem: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", lines(99_000, 100_000, problem))
    start = time.monotonic()
    with pytest.raises(UserError, match=r"a\.jsonl, line 99000"):
        load_examples(path)
    assert time.monotonic() - start < 10


TWICE = {
    "record": ('{"instruction":"a","output":"b","output":"c"}', "output"),
    "message": (
        '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","content":"c"}]}',
        "content",
    ),
    "equal values": ('{"instruction":"a","output":"b","output":"b"}', "output"),
    "half of a character": (r'{"a\ud83d":"a","a\ud83d":"b"}', "a\ufffd"),
}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "data.json", "stream.jsonl"])
@pytest.mark.parametrize("case", TWICE)
def test_a_key_that_is_there_twice_is_named(case: str, name: str, tmp_path: Path) -> None:
    record, key = TWICE[case]
    listed = f"[{json.dumps(RECORD)},\n{record}]"
    content = {"a.json": listed, "data.json": f'{{"data":{listed}}}'}.get(name, f"{json.dumps(RECORD)}\n{record}\n")
    path = written(tmp_path / name, content)
    with pytest.raises(UserError) as mistake:
        StreamPart("s", [shard_of_file(path)]).read(9) if name == "stream.jsonl" else list(readers.read_file(path))
    place = {"a.json": ", record 2", "data.json": ""}.get(name, ", line 2")
    assert (
        str(mistake.value) == f"{path}{place}: the key '{key}' occurs twice in one object. Remove or rename one of them"
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_keys_are_checked_in_the_first_records(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "_CHECKED", 10)
    for count, checked in ((9, True), (10, False)):
        records = [json.dumps(RECORD)] * count + ['{"x":1,"x":2}']
        text = "\n".join(records) if name == "a.jsonl" else f"[{','.join(records)}]"
        path = written(tmp_path / name, text)
        with pytest.raises(UserError, match="the key 'x' occurs twice") if checked else nullcontext():
            assert len(list(readers.read_file(path))) == 11


def test_a_stream_checks_the_same_records_wherever_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "_CHECKED", 10)
    path = written(tmp_path / "a.jsonl", "\n".join([json.dumps(RECORD)] * 12 + ['{"x":1,"x":2}']))
    whole = shard_of_file(path)
    first = whole.records([], lambda number: True)
    for _ in range(5):
        next(first)
    position = whole.current()
    for start, wanted in (([], 13), (position, 8)):
        assert len(list(shard_of_file(path).records(start, lambda number: True))) == wanted
    assert len(list(shard_of_file(path).records([], lambda number: number % 2 == 0))) == 7


READ: dict[str, Callable[[str], str]] = {
    "a.jsonl": lambda record: "\n".join([record] * 30_000),
    "a.json": lambda record: f"[{','.join([record] * 30_000)}]",
    "a.tsv": lambda record: "x\ty\n" + "\n".join([f"{record}\t1"] * 30_000),
    "a.csv": lambda record: "x,y\n" + "\n".join(["text of a record,1"] * 99_000),
}


@pytest.mark.parametrize("name", READ)
def test_reading_takes_little_memory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "_BLOCK", 1 << 14)
    path = written(tmp_path / name, READ[name](json.dumps(RECORD)))
    tracemalloc.start()
    try:
        count = sum(1 for _ in readers.read_file(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count >= 30_000 and peak < path.stat().st_size / 4


def test_bytes_that_are_no_text_are_named_by_their_place(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", json.dumps(RECORD).encode() + b'\n{"a": "\xff"}\n')
    where = path.read_bytes().index(b"\xff")
    with pytest.raises(UserError, match=rf"is not UTF-8 text \(byte {where}\)"):
        load_examples(path)
    with pytest.raises(UserError, match=r"is not UTF-8 text \(byte 4\)"):
        list(readers.read_file(written(tmp_path / "a.csv", b"a,b\n\xff,1\n")))
